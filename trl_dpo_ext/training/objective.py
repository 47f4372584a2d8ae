"""The weighted mix of registered losses that a run minimizes: from log-probs to one value per prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.reads import Reads
from ..losses import LossSpec
from ..types import PreferencePairs, RankedResponses
from .errors import ConfigError
from .modifiers import LossModifiers
from .readable import Facts, counts, only, readable


@dataclass(frozen=True)
class Term:
    """One loss of the mix, with its complete, validated hyperparameters and its weight."""

    spec: LossSpec
    hyperparameters: Mapping[str, Any]
    weight: float


def _check_shape(spec: LossSpec, losses: Any, data: PreferencePairs | RankedResponses) -> None:
    # A mean broadcasts, so that without this it would train, with other weights than the user thinks.
    if isinstance(losses, Tensor) and losses.shape == (len(data),):
        return
    kind = "prompt" if spec.listwise else "pair"
    got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
    hint = " Return the values themselves; the trainer takes the mean." if got == "shape ()" else ""
    raise ConfigError(
        f"The loss {spec.name!r} ({spec.origin}) returned {got} for {len(data)} {kind}s. Expected shape "
        f"({len(data)},), one value per {kind}.{hint}"
    )


def mean_per_prompt(values: Tensor, data: PreferencePairs | RankedResponses, prompts: int) -> Tensor:
    """Return one value per prompt, [B]: the mean over its pairs (0 if it has none), or the listwise value itself."""
    if isinstance(data, RankedResponses):
        return values
    assert data.prompts is not None
    totals = values.new_zeros(prompts).index_add(0, data.prompts, values)
    return totals / torch.bincount(data.prompts, minlength=prompts).clamp(min=1)


@dataclass
class RunningMean:
    """A running mean over steps that starts at 0: exponential if there is a momentum, otherwise the plain mean."""

    value: float = 0.0
    batches: int = 0

    def update(self, batch_mean: float, momentum: float | None) -> None:
        """Add the mean of one step."""
        self.batches += 1
        past = 1 - 1 / self.batches if momentum is None else momentum
        self.value = past * self.value + (1 - past) * batch_mean


@dataclass
class Objective:
    """A mix of losses over a batch of rankings.

    All losses are averaged the same way: a listwise loss gives one value per prompt, a pairwise loss the mean over the
    pairs of a prompt, a loss on labels the mean over its labelled responses. Each loss is then averaged over the
    prompts of the step that it can read (see `readable`).

    Attributes:
        terms: the losses with their weights.
        pairing: the pairs that a ranking gives to pairwise losses, see `pair_indices`.
        modifiers: settings that apply to every loss.
        derive_labels: rows without labels get them from their order or scores.
        desirable_above: the score above which a derived label is desirable.
        running_means: running means of the statistics that losses declare, by loss name; saved in checkpoints.
    """

    terms: Sequence[Term]
    pairing: str = "all"
    modifiers: LossModifiers = field(default_factory=LossModifiers)
    derive_labels: bool = False
    desirable_above: float | None = None
    running_means: dict[str, RunningMean] = field(default_factory=dict)

    @property
    def reads_reference(self) -> bool:
        """Whether any loss reads the reference log-probs."""
        return any(not term.spec.reference_free for term in self.terms)

    @property
    def couples_batch(self) -> bool:
        """Whether the loss of a prompt depends on the other prompts of the step."""
        return any(term.spec.reads_batch for term in self.terms)

    @property
    def needs(self) -> frozenset[str]:
        """The needs that the losses declare, plus token log-probs if a modifier reads them."""
        modifier_needs = {"token_logps"} if self.modifiers.reads_tokens else set()
        return frozenset(modifier_needs).union(*(term.spec.needs for term in self.terms))

    @property
    def reads(self) -> Reads:
        """What the losses read of a row."""
        needs = self.needs
        return Reads(
            ties="ties" in needs,
            single_responses=any(term.spec.single_responses for term in self.terms),
            labels="labels" in needs,
            derive_labels=self.derive_labels,
            desirable_above=self.desirable_above,
            reference_scores="reference_scores" in needs,
            weight="weight" in needs,
            mismatched="mismatched" in needs,
        )

    @property
    def rewarding_term(self) -> Term:
        """The loss whose implicit reward is logged: the first one with a beta, else the first."""
        return next((term for term in self.terms if term.spec.beta is not None), self.terms[0])

    @property
    def reward_scale(self) -> float:
        """The beta of rewards in metrics; 1 where no loss has one."""
        term = self.rewarding_term
        return 1.0 if term.spec.beta is None else term.hyperparameters[term.spec.beta]

    def rewards(self, log_ratios: Tensor | None, logps: Tensor, mean_logps: Tensor) -> Tensor:
        """Return implicit rewards: beta times the log-ratio, or without a reference beta times the log-prob.

        Args:
            log_ratios: of responses, nats; None without a reference.
            logps, mean_logps: same shape; a length-normalized loss reads the mean per token (SimPO, ORPO).
        """
        if log_ratios is not None:
            return self.reward_scale * log_ratios
        return self.reward_scale * (mean_logps if self.rewarding_term.spec.length_normalized else logps)

    @property
    def reads_several_kinds(self) -> bool:
        """Whether one loss may read rows that another can't: labels or single responses beside rankings."""
        kinds = {("labels" in term.spec.needs, term.spec.single_responses) for term in self.terms}
        return len(kinds) > 1

    def __call__(
        self, responses: RankedResponses, *, training: bool, step: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss per prompt and the losses' own metrics per prompt.

        Args:
            responses: B prompts, [B, K]; if a loss couples the batch, all prompts of the step.
            training: update the running means.
            step: the `counts` of the whole step, of which these are a part; None if these are all.

        Returns:
            The loss, [B] float32, scaled so that its mean over the prompts of the step is the weighted sum of each
            loss's mean over the prompts that it can read; and the metrics, {name: [B]}.
        """
        total = responses.logps.new_zeros(len(responses))
        metrics: dict[str, Tensor] = {}
        facts = Facts.of(responses)
        prompts, *read = counts([term.spec for term in self.terms], [facts]) if step is None else step
        for term, number in zip(self.terms, read, strict=True):
            spec = term.spec
            able = readable(spec, facts)
            own = only(responses, able)
            data: Any = own if spec.listwise else own.pairs(self.pairing, ties="ties" in spec.needs)
            if not spec.reference_free:
                data = self.modifiers.apply(data)
            if spec.statistic is not None:
                data = self._with_means(data, term, training)
            losses = spec.fn(data, **term.hyperparameters)
            _check_shape(spec, losses, data)
            if self.modifiers.use_weighting:
                losses = losses * data.chosen_weights * data.rejected_weights
            scale = prompts.to(losses.device) / number.to(losses.device).clamp(min=1)
            total = total + term.weight * scale * mean_per_prompt(losses, data, len(responses))
            if self.reads_several_kinds:
                metrics[f"{spec.name}/rows"] = able.float()
            if spec.metrics is not None:
                with torch.no_grad():
                    for key, values in spec.metrics(data, **term.hyperparameters).items():
                        metrics[f"{spec.name}/{key}"] = mean_per_prompt(values, data, len(responses))
        return total, metrics

    def _with_means(self, data: Any, term: Term, training: bool) -> Any:
        spec = term.spec
        assert spec.statistic is not None
        with torch.no_grad():
            values = spec.statistic(data, **term.hyperparameters)
            batch_mean = values.sum() / max(len(values), 1)  # 0 where all responses of a step are tied
        state = self.running_means.setdefault(spec.name, RunningMean())
        if training:
            state.update(batch_mean.item(), spec.momentum)
        return data.replace(batch_mean=batch_mean, running_mean=batch_mean.new_tensor(state.value))
