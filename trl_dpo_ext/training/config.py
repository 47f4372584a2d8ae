"""The training configuration: TRL's `DPOConfig` with losses from the registry, validated on creation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .._compat.trl_trainer import HookedConfig
from ..losses import TRL_LOSS_FIELDS, HyperparameterError, LossSpec, get_loss
from ..registry import did_you_mean
from ..setting_ranges import out_of_range
from ..types import PAIRINGS
from .errors import ConfigError
from .modifiers import F_DIVERGENCES, LossModifiers
from .objective import Objective, Term
from .preflight.hardware import check_bf16, check_processes


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            f"{name}={value!r} is unknown.{did_you_mean(str(value), known)} Choose one of: {', '.join(known)}."
        )


class UnsetLosses(list[str]):
    """The default of `loss_type`, told from the same losses given by the user."""


@dataclass
class PreferenceConfig(HookedConfig):
    """Configuration of `PreferenceTrainer`. Every field of `trl.DPOConfig` keeps its meaning.

    Args:
        loss_type: one or more registered losses (TRL's names are aliases); `trl-dpo-ext losses` lists them.
        loss_weights: one weight per loss, 1 by default.
        loss_kwargs: hyperparameters per loss, for example `{"simpo": {"gamma_beta_ratio": 0.3}}`.
        beta, label_smoothing, discopop_tau: TRL's fields, passed to every loss that has them. None: each loss's own
            default. An error if no loss has one, unless it is TRL's default.
        pairing: the pairs that a ranking of K > 2 gives to pairwise losses: `all`, `best_vs_rest`, `adjacent`,
            `best_vs_worst`.
        derive_labels: losses that read labels also read rows without any: the best responses of a ranking or pair are
            desirable, the others not. None: true where a loss that reads labels is the only loss.
        desirable_above: derived labels of rows with scores say whether the score is greater than this.
        match_prompts: with `bco_unpaired`, weight each undesirable response by the density of its prompt among those of
            desirable responses, relative to that among undesirable ones (arXiv 2404.04656). A logistic regression on
            the reference's mean last hidden state of the prompt estimates it before training. Values of a column
            `weight` are kept. The regression is saved as density_ratio.json.
        humanline: `[low, high]` clips each token's log-ratio, in nats, before the sum, for every loss that reads the
            reference (arXiv 2509.24207; `[-1.0, 1.5]` in the authors' code, which also sets the reference to the policy
            after each step: `sync_ref_model`). Logged log-probs and rewards are those before the clip.
        prefix_sharing: compute each prompt once for all its responses. `auto`: if the model supports it (checked before
            training), in the batches that become cheaper. `true`: always, `false`: never.
        packing: fill padding by putting several prompts with their responses in a row.
        responses_per_pass: run at most so many responses of each prompt at a time, forward and backward, so that memory
            doesn't grow with K. None: all at once. See docs/whole_step.md.
        invalid_rows: `error` stops at unusable rows and lists them; `drop` skips and counts them.
        ref_cache_dir: folder for the reference log-probs of `precompute_ref_log_probs`, shared by all runs. By default
            inside the Hugging Face cache home. See docs/reference_cache.md.
        enable_jit_checkpoint: on SIGTERM, finish the step, write a checkpoint (unless `save_strategy` is "no"), and
            exit with code 143.
        hub_base_model, hub_base_revision: Hub id and revision of the base model, for runs that train from a local path
            and push.
        resume_from_hub: Hub repository to resume from: its last checkpoint (`hub_strategy="checkpoint"`).

    Raises:
        ConfigError, UnknownNameError, HyperparameterError: the settings can't work. Raised before a model is loaded.
    """

    loss_type: list[str] = field(
        default_factory=lambda: UnsetLosses(["sigmoid"]),
        metadata={"help": "One or several registered losses; `trl-dpo-ext losses` lists them."},
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Hyperparameters per loss: a mapping from loss name to values."}
    )
    beta: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Passed to every loss that has a beta. By default each uses its own."},
    )
    label_smoothing: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Passed to every loss with label smoothing. By default each uses its own."}
    )
    discopop_tau: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Temperature of the `discopop` loss. By default its own."}
    )
    pairing: str = field(
        default="all",
        metadata={
            "help": "The pairs that a ranking gives to pairwise losses.",
            "choices": list(PAIRINGS),
        },
    )
    derive_labels: bool | None = field(
        default=None,
        metadata={
            "help": "Label the best responses of a ranking or pair desirable, the others not. By default only where a "
            "loss that reads labels is the only loss."
        },
    )
    desirable_above: float | None = field(
        default=None, metadata={"help": "Derived labels say whether a response's score is greater than this."}
    )
    match_prompts: bool = field(
        default=False,
        metadata={
            "help": "For bco_unpaired: weight undesirable responses by how much more likely their prompt is among the "
            "desirable ones, from a classifier of the prompts fitted before training."
        },
    )
    humanline: list[float] | None = field(
        default=None,
        metadata={"help": "Clip each token's log-ratio to these two limits before the sum: -1.0 1.5 in the paper."},
    )
    prefix_sharing: str = field(
        default="auto", metadata={"help": "Compute each prompt once for all its responses: auto, true or false."}
    )
    packing: bool = field(
        default=True, metadata={"help": "Put several prompts with their responses in a row, to fill padding."}
    )
    responses_per_pass: int | None = field(
        default=None,
        metadata={
            "help": "Run at most so many responses of each prompt at a time, so that memory doesn't grow with K."
        },
    )
    invalid_rows: Literal["error", "drop"] = field(
        default="error",
        metadata={
            "help": "What to do with unusable dataset rows: `error` lists them and stops, `drop` counts them.",
            "choices": ["error", "drop"],
        },
    )
    ref_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the reference log-probs of precompute_ref_log_probs, shared by all runs. By default "
            "inside the Hugging Face cache home."
        },
    )
    enable_jit_checkpoint: bool = field(
        default=True,
        metadata={
            "help": "On SIGTERM, finish the step, write a checkpoint (unless save_strategy is 'no'), exit with 143."
        },
    )
    hub_base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the base model, for runs that train from a local path and push."}
    )
    hub_base_revision: str | None = field(default=None, metadata={"help": "Revision of hub_base_model."})
    resume_from_hub: str | None = field(
        default=None, metadata={"help": "Hub repository whose last checkpoint to resume from."}
    )

    def __post_init__(self) -> None:
        check_processes(self.use_cpu)  # must run before super().__post_init__, where the processes connect
        check_bf16(self.bf16, self.fp16, self.use_cpu)
        if self.use_cpu or not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch warns that there is nothing to pin it for
        try:
            super().__post_init__()
        except (TypeError, OSError) as error:  # a mapping with unknown keys, or a file of one that can't be read
            raise ConfigError(f"The training settings can't be used: {error}") from error
        if self.accelerator_config.dispatch_batches:  # type: ignore[union-attr]
            raise ConfigError(
                "accelerator_config: dispatch_batches=True truncates every tensor of a streamed batch to the number of "
                "prompts, but a batch has more rows than prompts. Leave it unset."
            )
        # For a streamed evaluation dataset, unset means True. TRL only handles the training dataset.
        self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        _check_choice("pairing", self.pairing, PAIRINGS)
        self.prefix_sharing = str(self.prefix_sharing).lower()
        _check_choice("prefix_sharing", self.prefix_sharing, ("auto", "true", "false"))
        _check_choice("invalid_rows", self.invalid_rows, ("error", "drop"))
        _check_choice("f_divergence_type", self.f_divergence_type, F_DIVERGENCES)
        if self.truncation_mode != "keep_start":
            raise ConfigError(
                f"truncation_mode={self.truncation_mode!r} (deprecated in TRL) truncates the prompt differently for "
                "each response, but here all responses share one prompt. Use 'keep_start'."
            )
        if self.pad_to_multiple_of is not None:
            raise ConfigError(
                f"pad_to_multiple_of={self.pad_to_multiple_of} is not supported: rows are packed, or padded to the "
                "longest one of the batch. Leave it unset."
            )
        if self.pad_token is not None:
            raise ConfigError(
                f"pad_token={self.pad_token!r} (deprecated in TRL) is not supported. Set tokenizer.pad_token, and pass "
                "the tokenizer to the trainer as processing_class."
            )
        self._check_ignored()
        self._check_numbers()
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length={self.max_length} leaves no room for a prompt and a response. Set it to 2 or more."
            )
        if self.humanline is not None and not (
            len(self.humanline) == 2 and -math.inf < self.humanline[0] < 0 < self.humanline[1] < math.inf
        ):
            raise ConfigError(
                f"humanline={self.humanline} must be two finite limits, one below 0 and one above, such as [-1.0, 1.5]."
            )
        self.objective()

    def _check_ignored(self) -> None:
        # Settings of transformers that a preference loss has no use for.
        if self.label_smoothing_factor:
            raise ConfigError(
                f"label_smoothing_factor={self.label_smoothing_factor} smooths the labels of language modelling, which "
                "a preference loss doesn't have. Use label_smoothing, with a loss that has it."
            )
        sampling = getattr(self, "train_sampling_strategy", "random")
        if sampling not in ("random", "sequential"):
            raise ConfigError(
                f"train_sampling_strategy={sampling!r} groups single texts by length, and a row here has a prompt and "
                "several completions. Remove it; packing fills the padding instead."
            )

    def _check_numbers(self) -> None:
        # transformers accepts any number here. It fails much later, or trains nothing.
        if faults := [fault for _, fault in out_of_range(vars(self))]:
            raise ConfigError(" ".join(faults))
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ConfigError(
                f"num_train_epochs={self.num_train_epochs} trains nothing. Increase it, or set max_steps."
            )
        if unusable := [weight for weight in self.loss_weights or [] if not math.isfinite(weight)]:
            raise ConfigError(f"loss_weights={self.loss_weights} contains {unusable[0]}. Expected finite numbers.")
        if self.loss_weights and not any(self.loss_weights):
            raise ConfigError(
                f"loss_weights={self.loss_weights} trains nothing. Give at least one loss another weight."
            )

    def objective(self) -> Objective:
        """Build the configured mix of losses.

        Raises:
            UnknownNameError, HyperparameterError, ConfigError: a loss, hyperparameter or weight is invalid, or their
                combination.
        """
        specs = [get_loss(name) for name in self.loss_type]
        if not specs:
            raise ConfigError("loss_type is empty. Name at least one loss.")
        weights = self.loss_weights or [1.0] * len(specs)
        objective = Objective(
            terms=[
                Term(spec, values, weight)
                for spec, values, weight in zip(specs, self._hyperparameters(specs), weights, strict=True)
            ],
            pairing=self.pairing,
            modifiers=LossModifiers(
                self.f_divergence_type,
                self.f_alpha_divergence_coef,
                self.ld_alpha,
                self.use_weighting,
                None if self.humanline is None else (self.humanline[0], self.humanline[1]),
            ),
            derive_labels=self._derives_labels(specs),
            desirable_above=self.desirable_above,
        )
        self._check_combination(objective)
        return objective

    def _derives_labels(self, specs: list[LossSpec]) -> bool:
        """Return whether rows without labels get them, and refuse settings that would do nothing."""
        reads = any("labels" in spec.needs for spec in specs)
        derives = self.derive_labels if self.derive_labels is not None else reads and len(specs) == 1
        if self.derive_labels and not reads:
            raise ConfigError(f"derive_labels is set, but none of {self.loss_type} reads labels. Remove it.")
        if self.desirable_above is not None and not derives:
            raise ConfigError(
                f"desirable_above={self.desirable_above} has no effect without derived labels. Remove it, or set "
                "derive_labels: true with a loss that reads labels."
            )
        if self.desirable_above is not None and not math.isfinite(self.desirable_above):
            raise ConfigError(f"desirable_above={self.desirable_above} is out of range. Expected a finite number.")
        return derives

    def _hyperparameters(self, specs: list[LossSpec]) -> list[dict[str, Any]]:
        given = self.loss_kwargs or {}
        if not isinstance(given, dict):
            raise ConfigError(f"loss_kwargs={given!r} must map loss names to hyperparameters.")
        by_loss: dict[str, dict[str, Any]] = {}
        for name, values in given.items():
            canonical = get_loss(name).name
            if canonical not in {spec.name for spec in specs}:
                raise HyperparameterError(
                    f"loss_kwargs has hyperparameters for {name!r}, but loss_type is {self.loss_type}."
                )
            if not isinstance(values, dict):
                raise HyperparameterError(f"loss_kwargs[{name!r}]={values!r} must be a mapping of hyperparameters.")
            by_loss[canonical] = values
        fields = {f: v for f in TRL_LOSS_FIELDS if (v := getattr(self, f)) is not None}
        complete = []
        for spec in specs:
            shared = {spec.trl_fields[f]: value for f, value in fields.items() if f in spec.trl_fields}
            complete.append(spec.check({**shared, **by_loss.get(spec.name, {})}))
        for name, value in fields.items():
            # A TRL config may set a field explicitly to TRL's default. Accept that even if no loss reads it.
            if value != TRL_LOSS_FIELDS[name] and not any(name in spec.trl_fields for spec in specs):
                raise HyperparameterError(f"{name}={value} is set, but no loss of {self.loss_type} has it. Remove it.")
        return complete

    def _check_combination(self, objective: Objective) -> None:
        names = {spec.name: spec for spec in (term.spec for term in objective.terms)}
        if self.f_divergence_type != "reverse_kl":
            refused = sorted(n for n, spec in names.items() if not spec.f_divergence)
            if refused:
                raise ConfigError(
                    f"f_divergence_type={self.f_divergence_type!r} needs losses of the difference of two rewards, "
                    f"which {', '.join(refused)} is not. Use f_divergence_type='reverse_kl'."
                )
        if self.use_weighting:
            refused = sorted(n for n, spec in names.items() if spec.listwise or spec.couples_batch)
            if refused:
                raise ConfigError(
                    f"use_weighting=True (WPO) weights single pairs, so it doesn't support {', '.join(refused)}, which "
                    "is listwise or couples the pairs of a batch. Set use_weighting=False."
                )
        if self.match_prompts and not any("weight" in spec.needs for spec in names.values()):
            raise ConfigError(f"match_prompts is set, but none of {self.loss_type} reads weights. Remove it.")
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ConfigError(
                "sync_ref_model=True updates the reference during training, but precompute_ref_log_probs=True computes "
                "its log-probs before. After the first update, stored values are wrong. Set one of the two to False."
            )
        if not objective.reads_reference:
            for name, on in {
                "precompute_ref_log_probs": self.precompute_ref_log_probs,
                "sync_ref_model": self.sync_ref_model,
                "ld_alpha": self.ld_alpha is not None,
                "humanline": self.humanline is not None,
            }.items():
                if on:
                    raise ConfigError(
                        f"{name} is set, but none of {self.loss_type} reads the reference model. Remove it."
                    )
