"""`PreferenceTrainer`: TRL's `DPOTrainer` with losses from the registry and rankings of any K."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import is_peft_model, send_to_device
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer

from .._compat.trl import (
    load_processing_class,
    load_reference,
    plain_dpo_config,
    prepare_reference,
    text_tokenizer,
)
from .._compat.trl_trainer import HookedTrainer
from ..data.collator import PreferenceCollator
from ..data.tokenize import TOKEN_COLUMNS
from ..modeling.dropout import disable_functional_dropout
from ..modeling.forward import Outputs, TokenOutputs, prepare_inputs, token_logps, token_outputs
from ..modeling.layout import PromptGroup, padded_layout
from ..modeling.passes import PASS, passes_of
from ..reference import ReferenceIdentity
from ..reference.fill_reference_cache import compute_dtype
from ..reference.run_reference import NO_SECOND_MODEL, Reference
from ..types import MissingReferenceError, RankedResponses
from .batch import ranked_responses, step_loss, token_count
from .choose_layout import RunWhenWrapped, choose_layout
from .config import PreferenceConfig
from .dataset_rows import by_name, check_rows, is_tokenized, map_by_name, tokenize_rows
from .density_ratio import fit_to_rows, with_weights
from .errors import CheckpointError, ConfigError
from .metrics import MetricSums, batch_metrics
from .objective import Objective
from .preflight import run_checks
from .preflight.adapter_checks import check_checkpoint_adapter
from .preflight.model_limits import check_model_limits
from .preflight.model_options import unknown_options_named
from .publish import checkpoint_from_hub, push_checkpoint, push_output, recorded_steps, write_record
from .safety.checkpoint import atomic_checkpoint, find_checkpoint
from .safety.checkpoint_engine import check_engine, engine_now
from .safety.guard import TrainingGuard
from .safety.output_folder import held, set_aside
from .safety.run_identity import RunIdentity
from .safety.run_settings import adapter_settings, run_settings, shared_settings
from .safety.run_state import RunState, SavedState, StopOnSigterm, read_state, write_state
from .safety.together import check_same_settings, from_main_process
from .stored_reference import StoredReference, computes_online, open_cache
from .token_rate import TokenRate
from .whole_step import NUMBER, REAL_PASSES, PromptLosses, WholeStep

# DPOTrainer calls these methods. PreferenceTrainer computes losses differently and never does.
_NEVER_CALLED = ("_compute_loss", "compute_ref_log_probs", "_precompute_ref_logps")


class PreferenceTrainer(HookedTrainer):
    """Train on pairs or rankings with any mix of registered losses.

    It takes what `trl.DPOTrainer` takes: PEFT, quantized models, accelerate, the Hub, callbacks. Each prompt may have
    any number K >= 2 of responses, with ties (see `trl_dpo_ext.data.format`). If no loss reads the reference, no
    reference model is loaded and no reference forward runs.

    Not taken from DPOTrainer, each an error: images, `compute_metrics`, `data_collator`, `truncation_mode="keep_end"`,
    `pad_to_multiple_of`, `pad_token`, settings that no chosen loss reads, overrides of `_compute_loss` and
    `compute_ref_log_probs`. `predict` returns metrics only. See docs/moving_from_trl.md.

    Args:
        model: Hub id, folder, `PreTrainedModel` or `PeftModel`. In full fine-tuning, its weights in memory are also the
            reference.
        ref_model: a different reference.
        args: the configuration.
        train_dataset, eval_dataset: rows in any accepted form; checked before the model is loaded.
        **kwargs: arguments of `trl.DPOTrainer` (`processing_class`, `peft_config`, `quantization_config`, ...).

    Raises:
        TypeError: `args` isn't a `PreferenceConfig`, or a dataset isn't one of the `datasets` library.
        ValueError: `train_dataset` is not given.
        ConfigError, DataError: settings can't work together, or rows are unusable.

    Example:
        ```python
        trainer = PreferenceTrainer(
            model="Qwen/Qwen2.5-0.5B",
            args=PreferenceConfig(output_dir="out", loss_type="plackett_luce"),
            train_dataset=dataset,  # prompt, completions, ranks
        )
        trainer.train()
        ```
    """

    columns = TOKEN_COLUMNS
    objective: Objective
    args: PreferenceConfig
    model: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _NEVER_CALLED:
            if getattr(cls, name) is not getattr(DPOTrainer, name):
                raise TypeError(
                    f"{cls.__name__} overrides {name}, but PreferenceTrainer never calls it. Override compute_loss, or "
                    "register a loss with trl_dpo_ext.register_loss."
                )

    def __init__(
        self,
        model: Any,
        ref_model: PreTrainedModel | str | None = None,
        args: PreferenceConfig | None = None,
        *,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = PreferenceConfig("trl-dpo-ext-output")
        if not isinstance(args, PreferenceConfig):
            raise TypeError(
                f"args is a {type(args).__name__}. Pass a PreferenceConfig; it accepts every field of DPOConfig."
            )
        if train_dataset is None:
            raise ValueError("`train_dataset` is required. Pass a datasets.Dataset or IterableDataset.")
        self.objective = args.objective()
        run_checks.check_arguments(model, ref_model, args, kwargs, self.objective)
        settings = run_settings(args, self.objective, train_dataset)
        check_same_settings({**settings, **shared_settings(args), "eval_dataset": sorted(by_name(eval_dataset))})
        # Rows are checked before the tokenizer is loaded, and tokenized before the model is.
        train_dataset = check_rows(train_dataset, self.objective, args, "train")
        eval_dataset = map_by_name(eval_dataset, lambda name, rows: check_rows(rows, self.objective, args, name))
        kwargs["processing_class"] = kwargs.get("processing_class") or load_processing_class(model, args)
        tokenizer = text_tokenizer(kwargs["processing_class"])
        train = tokenize_rows(train_dataset, tokenizer, self.objective, args, "train")
        evaluation = map_by_name(
            eval_dataset, lambda name, rows: tokenize_rows(rows, tokenizer, self.objective, args, name)
        )
        self.run_identity = RunIdentity(settings, train)
        self.run_identity.check_processes(by_name(evaluation))
        if args.resume_from_checkpoint and args.resume_from_hub is None:  # before the model is loaded
            self._check_run(find_checkpoint(args.resume_from_checkpoint, str(args.output_dir), verify=False))
        stores = args.precompute_ref_log_probs and not computes_online(train, *by_name(evaluation).values())
        self._reference = Reference(
            model,
            ref_model,
            needed=self.objective.reads_reference,
            new_adapter=kwargs.get("peft_config") is not None,
            keep_model=not stores,
            synced=args.sync_ref_model,
        )
        plain_config = plain_dpo_config(args, precompute_ref_log_probs=False, sync_ref_model=False)
        with plain_config, unknown_options_named(args.model_init_kwargs):
            super().__init__(
                model=model,
                ref_model=NO_SECOND_MODEL,
                args=args,
                data_collator=PreferenceCollator(padded_layout, responses_per_pass=args.responses_per_pass),
                train_dataset=train,
                eval_dataset=evaluation,
                **kwargs,
            )
        check_model_limits(self.model, tokenizer, {"train": train, **by_name(evaluation)})
        self._restore_public_attributes()
        self.recorded = False
        self._step: WholeStep | None = None
        self._step_totals = MetricSums()
        self.guard, self.run_state, self.sigterm = TrainingGuard(self), RunState(self), StopOnSigterm(self)
        for callback in (self.guard, self.run_state, self.sigterm, TokenRate(self)):
            self.add_callback(callback)
        if self.is_world_process_zero():
            self.data_findings = run_checks.log_data_findings(self, train_dataset, eval_dataset)
        if args.disable_dropout:
            disable_functional_dropout(self.model)
        self._reference.settle(
            self.model,
            self.accelerator,
            load=lambda path: load_reference(self.model, args, kwargs.get("quantization_config"), path),
            prepare=lambda second: prepare_reference(second, self),
        )
        if args.sync_ref_model:
            self.add_callback(self._reference.callback())
        self._stored: StoredReference | None = None
        fill = self._fill_reference_cache if stores else lambda: None
        if self.weights_are_sharded:
            self.add_callback(RunWhenWrapped(self, fill))
            return
        self._collator.layout = choose_layout(self, self.model)
        if args.match_prompts:
            self._match_prompts()
        fill()

    def _restore_public_attributes(self) -> None:
        """Set the public attributes that DPOTrainer's constructor read from the plain DPO config."""
        args = self.args
        self.loss_types, self.loss_weights = args.loss_type, [term.weight for term in self.objective.terms]
        self.f_divergence_type = args.f_divergence_type
        self.precompute_ref_logps = args.precompute_ref_log_probs
        for field in ("beta", "label_smoothing"):
            values = [
                t.hyperparameters[t.spec.trl_fields[field]] for t in self.objective.terms if field in t.spec.trl_fields
            ]
            setattr(self, field, values[0] if values else None)

    # Reference

    @property
    def ref_model(self) -> Any:
        """The second model, or None if the reference is the policy's base, is stored, or isn't needed."""
        return self._reference.model

    @ref_model.setter
    def ref_model(self, value: Any) -> None:
        # DPOTrainer's constructor assigns its ref_model argument.
        if value is not NO_SECOND_MODEL:
            raise AttributeError(
                "ref_model can't be changed after the trainer is created. Pass ref_model to the constructor."
            )

    @property
    def reference_identity(self) -> ReferenceIdentity:
        """Identifies the reference weights. With `sync_ref_model`, these are the initial weights."""
        assert self._reference.identity is not None
        return self._reference.identity

    @property
    def has_reference(self) -> bool:
        """Whether the reference can always run: as a second model, or as the policy without its trained adapter."""
        return self.ref_model is not None or is_peft_model(self.model)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Any]:
        """Yield the reference, in evaluation mode and without gradients.

        It is the second model, or the policy with its adapter off or replaced by the initial adapter.

        Raises:
            MissingReferenceError: full fine-tuning has started and no reference was kept.
        """
        if not self.has_reference and self.state.global_step > 0:
            raise MissingReferenceError(
                "No reference is in memory: no loss reads it, or its log-probs are stored (precompute_ref_log_probs)."
            )
        with (
            torch.no_grad(),
            self._reference.active(self.model) as model,
        ):
            yield model

    @property
    def _collator(self) -> PreferenceCollator:
        return cast(PreferenceCollator, self.data_collator)

    @property
    def weights_are_sharded(self) -> bool:
        """Whether a forward pass needs all processes, each of which has a part of the weights."""
        return bool(self.is_fsdp_enabled or is_deepspeed_zero3_enabled())

    def _fill_reference_cache(self) -> None:
        """Fill the cache with the reference log-probs of all datasets, and connect the collator to it."""
        with self.accelerator.autocast():
            dtype = compute_dtype(self.model if self.ref_model is None else self.ref_model)
        cache = open_cache(self.reference_identity, self.args.ref_cache_dir, dtype)
        stored = StoredReference(
            cache,
            dtype,
            self._compute_reference,
            self.accelerator,
            progress=not self.args.disable_tqdm,
            sharded=self.weights_are_sharded,
        )
        if self.state.global_step > 0 and not self.has_reference:  # resumed, and wrapped with the checkpoint's weights
            stored.check_complete(self.train_dataset, *by_name(self.eval_dataset).values())
        batch_size = self.args.precompute_ref_batch_size
        stored.fill(self.train_dataset, "train", batch_size or self.args.per_device_train_batch_size)
        for name, dataset in by_name(self.eval_dataset).items():
            stored.fill(dataset, name, batch_size or self.args.per_device_eval_batch_size)
        self._collator.reference = cache.lookup
        self._stored = stored

    def _match_prompts(self) -> None:
        """Give the rows of all datasets the weights that `match_prompts` promises."""
        datasets = {"train": self.train_dataset, **by_name(self.eval_dataset)}
        if streamed := [name for name, rows in datasets.items() if isinstance(rows, IterableDataset)]:
            raise ConfigError(
                f"match_prompts reads all prompts before training, and the {streamed[0]} dataset is streamed. Set it "
                "to False, and give the weights in a column `weight`."
            )
        progress = not self.args.disable_tqdm
        with self.reference() as model, self.accelerator.autocast():
            ratio = fit_to_rows(model, self.train_dataset, self.accelerator, progress)
            weighted = {
                name: with_weights(rows, ratio, model, self.accelerator, progress) for name, rows in datasets.items()
            }
        self.train_dataset = weighted.pop("train")
        self.eval_dataset = weighted if isinstance(self.eval_dataset, dict) else weighted.get("eval")
        if self.is_world_process_zero():
            Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
            ratio.save(str(self.args.output_dir))

    def _compute_reference(self, groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        """Run the reference on groups. Return K float32 arrays of token log-probs for each."""
        rows = [{**vars(group), "ranks": [0] * len(group.completion_ids)} for group in groups]
        # Processes that share a forward pass must run equally many.
        at_once = None if self.weights_are_sharded else self.args.responses_per_pass
        collate = PreferenceCollator(self._collator.layout, responses_per_pass=at_once)
        batch = send_to_device(collate(rows), self.accelerator.device)
        with self.reference() as reference, self.accelerator.autocast():
            passes = [token_logps(reference, self.model.config, one) for one in passes_of(batch)]
            values = torch.stack(passes).sum(dim=0)
        by_group = zip(values.cpu().numpy(), groups, strict=True)
        return [[row[k, : len(ids)] for k, ids in enumerate(group.completion_ids)] for row, group in by_group]

    # Data

    def prepare_dataset(self, dataset: Any, name: str) -> Any:
        """Check and tokenize a dataset in any accepted form; see `trl_dpo_ext.data.format`."""
        if is_tokenized(dataset):
            return dataset
        tokenizer = text_tokenizer(self.processing_class)
        return tokenize_rows(
            check_rows(dataset, self.objective, self.args, name), tokenizer, self.objective, self.args, name
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the trainer's evaluation dataset, or on another dataset in any accepted form.

        Another dataset needs no reference in memory if all its reference log-probs are stored.

        Raises:
            MissingReferenceError: the dataset's reference log-probs aren't stored, and no reference is in memory.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            return self.evaluate_tokenized(eval_dataset, ignore_keys, metric_key_prefix)
        prepared = {name: self.prepare_dataset(dataset, name) for name, dataset in by_name(eval_dataset).items()}
        if self._stored is not None:
            self._ensure_stored(prepared)
        metrics: dict[str, float] = {}
        for name, dataset in prepared.items():
            prefix = f"{metric_key_prefix}_{name}" if isinstance(eval_dataset, dict) else metric_key_prefix
            metrics |= self.evaluate_tokenized(dataset, ignore_keys, prefix)
        return metrics

    def _ensure_stored(self, datasets: Mapping[str, Any]) -> None:
        assert self._stored is not None
        if self.has_reference or self.state.global_step == 0:
            for name, dataset in datasets.items():
                size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
                self._stored.fill(dataset, name, size)
        elif not self._stored.holds(*datasets.values()):
            raise MissingReferenceError(
                "evaluate: the reference log-probs of this dataset aren't stored, and full fine-tuning with "
                "precompute_ref_log_probs=True keeps no reference in memory after the first step. Pass the dataset to "
                "the constructor as eval_dataset, pass ref_model, or set precompute_ref_log_probs=False."
            )

    # Loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return the micro-batches of a step, and the number of their prompts over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.guard.begin_step(batches)
        self._step, self._step_totals = self._whole_step(batches, training=True), MetricSums()
        return self._step.batches, self._step.prompts

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run a micro-batch forward and backward, in several passes if `responses_per_pass` splits it."""
        *others, last = passes_of(inputs)
        loss = torch.zeros((), device=self.args.device)
        for one in others:
            with self.gradients_incomplete(model):
                loss = loss + super().training_step(model, one, num_items_in_batch)
        return loss + super().training_step(model, last, num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the number of operations for a micro-batch, summed over its passes."""
        return sum(super(PreferenceTrainer, self).floating_point_ops(one) for one in passes_of(inputs))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch, scaled so that the step's loss is the mean over all its prompts.

        In training, `inputs` may be one of several passes of the micro-batch. Their losses add up to its own.
        """
        training, step = self.model.training, self._step
        if step is None or NUMBER not in inputs:  # not called by `train`
            step = self._whole_step([inputs], training=training)
            inputs = {**inputs, **step.batches[0]}
        number, run = inputs[NUMBER], functools.partial(self._run_pass, model)
        stored = step.first_pass(number, run)
        outputs: Outputs
        if stored is None:
            outputs, ref_token_logps = run(inputs)
            responses = self._responses(outputs, ref_token_logps, inputs)
            losses = step.losses(number, responses)
            per_prompt, aux_loss = losses.differentiable(responses), outputs.aux_loss
        else:
            outputs, responses = stored.outputs, stored.responses
            losses = step.losses(number, responses)
            per_prompt, aux_loss = losses.values, outputs.aux_loss
            if torch.is_grad_enabled():
                per_prompt, aux_loss = self._second_pass(run, inputs, losses)
        loss = step_loss(per_prompt, num_items_in_batch, self._micro_batches)
        if self.aux_loss_enabled:
            assert aux_loss is not None
            loss = loss + self.router_aux_loss_coef * aux_loss
        if inputs.get(PASS, 0) == 0:  # the first pass of a micro-batch stands for all
            totals = batch_metrics(self.objective, responses, outputs, losses.metrics)
            if self.aux_loss_enabled:
                assert outputs.aux_loss is not None
                totals["aux_loss"] = (outputs.aux_loss.detach(), torch.tensor(1))
            mode, last = ("train", step.is_last(number)) if training else ("eval", True)
            nonfinite, magnitude = self._record_metrics(mode, loss.detach(), totals, step.batches[number], last)
            if training:
                culprits = functools.partial(step.culprits, number, losses)
                self.guard.check_loss(per_prompt, inputs, nonfinite, magnitude, culprits)
        return (loss, getattr(outputs, "model_outputs", None)) if return_outputs else loss

    def _whole_step(self, batches: Sequence[Mapping[str, Any]], *, training: bool) -> WholeStep:
        return WholeStep(batches, self.objective, self.accelerator, training=training, to_responses=self._responses)

    def _run_pass(
        self, model: Any, batch: Mapping[str, Any], with_reference: bool = True
    ) -> tuple[TokenOutputs, Tensor | None]:
        """Run the policy on one pass, and the reference if a loss reads log-probs that aren't stored."""
        arguments = prepare_inputs(self.model, self.model.config, batch)
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = token_outputs(model, {**arguments, **router}, batch)
        stored: Tensor | None = batch.get("ref_token_logps")
        if stored is not None or not (with_reference and self.objective.reads_reference):
            return outputs, stored
        with self.reference() as reference:
            return outputs, token_outputs(reference, arguments, batch).logps

    def _responses(self, outputs: Outputs, ref_token_logps: Tensor | None, batch: Mapping[str, Any]) -> RankedResponses:
        return ranked_responses(
            outputs, ref_token_logps, batch, needs=self.objective.needs, use_weighting=self.use_weighting
        )

    def _second_pass(
        self, run: Callable[..., tuple[TokenOutputs, Tensor | None]], inputs: Mapping[str, Any], losses: PromptLosses
    ) -> tuple[Tensor, Tensor | None]:
        """Return the losses of a micro-batch and its auxiliary loss, with the gradients of the passes in `inputs`."""
        per_prompt, aux_loss = torch.zeros_like(losses.values), None
        for one in passes_of(inputs):
            outputs, _ = run(one, with_reference=False)
            responses = ranked_responses(outputs, None, one, needs=self.objective.needs)
            per_prompt = per_prompt + losses.differentiable(responses, counted=one.get(PASS, 0) == 0)
            if outputs.aux_loss is not None:
                share = outputs.aux_loss * (one.get(PASS, 0) < one[REAL_PASSES]) / one[REAL_PASSES]
                aux_loss = share if aux_loss is None else aux_loss + share
        return per_prompt, aux_loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Evaluate a batch. Only the loss and metrics are computed; rankings have no logits to return."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    @property
    def _micro_batches(self) -> int:
        """Number of micro-batches in an optimizer step, over all processes."""
        steps: int = getattr(self, "current_gradient_accumulation_steps", 1)  # only set during training
        return steps * self.accelerator.num_processes

    def _record_metrics(
        self,
        mode: str,
        loss: Tensor,
        totals: Mapping[str, tuple[Tensor, Tensor]],
        batch: Mapping[str, Any],
        last: bool,
    ) -> tuple[float, float]:
        """Add up a micro-batch's metrics, and queue them at the last one of the step.

        Returns:
            The number of processes with a non-finite loss, and the sum of |loss|.
        """
        numbers = [part for total in totals.values() for part in total]
        more_than_pairs = torch.tensor(batch["ranks"].shape[1] > 2)
        numbers += [more_than_pairs, token_count(batch), ~torch.isfinite(loss), loss.abs()]
        numbers.append(torch.tensor(self.sigterm.received))
        flat = torch.stack([number.detach().to(loss.device).double() for number in numbers])
        # A single reduction over all processes.
        *sums, nonfinite, magnitude, sigterms = self.accelerator.reduce(flat, reduction="sum").tolist()
        self.sigterm.any_received |= sigterms > 0
        self._step_totals.add(totals, sums)
        if last:
            self.queue_metrics(mode, *self._step_totals.means())
            self._step_totals = MetricSums()
        return nonfinite, magnitude

    def check_gradients(self, model: nn.Module, norm: Any) -> Any:
        """Let the guard inspect the gradients before the update."""
        return self.guard.check_gradients(model, norm)

    # Checkpoints and records

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train from scratch or from a checkpoint.

        Args:
            resume_from_checkpoint: see `find_checkpoint`.
            *args, **kwargs: as for `transformers.Trainer.train`.

        Raises:
            DiskSpaceError, OutputFolderError, CheckpointError, ReferenceMismatchError, DataError: the run can't start.
            TrainingError: no weight changes, or NaN or infinity appears.
            SystemExit: SIGTERM arrived; a checkpoint was written.
        """
        run_checks.check_disk(self.model, self.args)
        self._reference.check_trainable(self.model)
        self.run_identity.settings |= adapter_settings(self.accelerator.unwrap_model(self.model))
        asked = {"resume_from_checkpoint": str(resume_from_checkpoint)}
        check_same_settings({**self.run_identity.settings, **shared_settings(self.args), **asked})
        if resume_from_checkpoint is None and self.args.resume_from_hub is not None:
            resume_from_checkpoint = checkpoint_from_hub(self.args.resume_from_hub, self.args)
        folder = str(self.args.output_dir)
        with held(folder):
            checkpoint = find_checkpoint(resume_from_checkpoint, folder)
            if checkpoint is not None:
                self._reference.check_checkpoint(checkpoint)
            self.run_state.saved = self._check_run(checkpoint)
            if checkpoint is None:
                set_aside(folder)
            else:
                check_engine(checkpoint, self)
                check_checkpoint_adapter(self.model, checkpoint)
                self._reference.load(checkpoint, self.model)
            with self.sigterm.listening():
                output = super().train(checkpoint, *args, **kwargs)
        if self.run_state.steps_trained == 0:
            output.metrics.pop("train_loss", None)  # the mean over no step
        return output

    def is_finished(self) -> bool:
        """Whether `resume_from_checkpoint` finds this run's checkpoints, and its record says that it took all steps."""
        output, asked = str(self.args.output_dir), self.args.resume_from_checkpoint
        if find_checkpoint(asked, output, verify=False) is None:
            return False
        return from_main_process(lambda: recorded_steps(output), CheckpointError) >= self.planned_steps()

    def _check_run(self, checkpoint: str | None) -> SavedState | None:
        """Refuse a checkpoint of another run, and return the state in it."""
        if checkpoint is None:
            return None
        saved = from_main_process(lambda: read_state(checkpoint), CheckpointError)
        self.run_identity.check(checkpoint, saved.run)
        return saved

    def random_state_restored(self, new_epoch: bool) -> None:
        """End the epoch before if the checkpoint was written before its end."""
        if new_epoch:
            self.run_state.end_epoch()

    @contextlib.contextmanager
    def checkpoint_writer(self, folder: Path) -> Iterator[None]:
        """Write a checkpoint atomically; see `atomic_checkpoint`."""
        push = functools.partial(push_checkpoint, self)
        state = self.run_state.collect()
        with atomic_checkpoint(folder, self.args, self.state, self.accelerator, engine_now(self), push):
            yield
            if self.args.should_save:
                write_state(folder, state)
                self.run_identity.save_rows(folder)
                self._reference.save(folder, self.model)

    def weights_writer(self) -> contextlib.AbstractContextManager[None]:
        """Exclude the adapter that was added as the reference."""
        return self._reference.left_out(self.model)

    def save_record(self, **extra: Any) -> None:
        """Write result.json, reference.json and the model card to the output folder, on the main process.

        Args:
            **extra: additional keys of result.json: `recipe`, `evaluation`, `seconds`, ...
        """
        self.recorded = True
        if self.is_world_process_zero():
            write_record(self, extra)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the run's record and model card. The arguments of TRL's card are ignored."""
        self.save_record()

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, and push it with its record and card; see `trl_dpo_ext.hub.push_run`.

        Call it on all processes, because saving may gather the model; the main process pushes. It always blocks until
        the push is done; `blocking` is ignored.

        Returns:
            The URL of the commit, on the main process.

        Raises:
            RunError, PushError: the folder can't be pushed, or the push didn't finish. The folder is intact.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_without_push()
        if not self.recorded:
            self.save_record()
        if not self.is_world_process_zero():
            return None
        return push_output(self, commit_message, token=token, revision=revision, private=private)
