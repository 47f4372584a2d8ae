"""The weighted mix of registered losses that a run minimizes: from log-probs to one value per prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..losses import LossSpec
from ..types import PreferencePairs, RankedResponses
from .modifiers import LossModifiers

GlobalMean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss of the mix, with its complete, validated hyperparameters and its weight."""

    spec: LossSpec
    hyperparameters: Mapping[str, Any]
    weight: float


def mean_per_prompt(values: Tensor, data: PreferencePairs | RankedResponses, prompts: int) -> Tensor:
    """Return one value per prompt, [B]: the mean over its pairs (0 if it has none), or the listwise value itself."""
    if isinstance(data, RankedResponses):
        return values
    assert data.prompts is not None
    totals = values.new_zeros(prompts).index_add(0, data.prompts, values)
    return totals / torch.bincount(data.prompts, minlength=prompts).clamp(min=1)


@dataclass
class RunningMean:
    """A running mean over batches that starts at 0: exponential if there is a momentum, otherwise the plain mean."""

    value: float = 0.0
    batches: int = 0

    def update(self, batch_mean: float, momentum: float | None) -> None:
        """Add the mean of one batch."""
        self.batches += 1
        past = 1 - 1 / self.batches if momentum is None else momentum
        self.value = past * self.value + (1 - past) * batch_mean


@dataclass
class Objective:
    """A mix of losses over a batch of rankings.

    All losses are averaged the same way: a listwise loss gives one value per prompt, a pairwise loss the mean over the
    pairs of a prompt. The trainer then averages over prompts.

    Attributes:
        terms: the losses with their weights.
        pairing: the pairs that a ranking gives to pairwise losses, see `pair_indices`.
        modifiers: settings that apply to every loss.
        running_means: running means of the statistics that losses declare, by loss name; saved in checkpoints.
    """

    terms: Sequence[Term]
    pairing: str = "all"
    modifiers: LossModifiers = field(default_factory=LossModifiers)
    running_means: dict[str, RunningMean] = field(default_factory=dict)

    @property
    def reads_reference(self) -> bool:
        """Whether any loss reads the reference log-probs."""
        return any(not term.spec.reference_free for term in self.terms)

    @property
    def needs(self) -> frozenset[str]:
        """The needs that the losses declare, plus token log-probs if `ld_alpha` is set."""
        modifier_needs = {"token_logps"} if self.modifiers.ld_alpha is not None else set()
        return frozenset(modifier_needs).union(*(term.spec.needs for term in self.terms))

    @property
    def reward_scale(self) -> float:
        """The beta of the logged rewards: that of the first loss with a beta, otherwise 1."""
        return next((t.hyperparameters[t.spec.beta] for t in self.terms if t.spec.beta is not None), 1.0)

    def __call__(
        self, responses: RankedResponses, *, training: bool, global_mean: GlobalMean = torch.mean
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss per prompt and the losses' own metrics per prompt.

        Args:
            responses: B prompts, [B, K].
            training: update the running means.
            global_mean: mean of a vector over the batches of all processes, for losses that couple the batch.

        Returns:
            The loss, [B] float32, and the metrics, {name: [B]}.
        """
        total = responses.logps.new_zeros(len(responses))
        metrics: dict[str, Tensor] = {}
        for term in self.terms:
            spec = term.spec
            data: Any = responses if spec.listwise else responses.pairs(self.pairing, ties="ties" in spec.needs)
            if not spec.reference_free:
                data = self.modifiers.apply(data)
            if spec.statistic is not None:
                data = self._with_means(data, term, training, global_mean)
            losses = spec.fn(data, **term.hyperparameters)
            if self.modifiers.use_weighting:
                losses = losses * data.chosen_weights * data.rejected_weights
            total = total + term.weight * mean_per_prompt(losses, data, len(responses))
            if spec.metrics is not None:
                with torch.no_grad():
                    for key, values in spec.metrics(data, **term.hyperparameters).items():
                        metrics[f"{spec.name}/{key}"] = mean_per_prompt(values, data, len(responses))
        return total, metrics

    def _with_means(self, data: Any, term: Term, training: bool, global_mean: GlobalMean) -> Any:
        spec = term.spec
        assert spec.statistic is not None
        with torch.no_grad():
            batch_mean = global_mean(spec.statistic(data, **term.hyperparameters))
        state = self.running_means.setdefault(spec.name, RunningMean())
        if training:
            state.update(batch_mean.item(), spec.momentum)
        return data.replace(batch_mean=batch_mean, running_mean=batch_mean.new_tensor(state.value))
