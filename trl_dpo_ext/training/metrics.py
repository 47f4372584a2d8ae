"""Metrics of a run: TRL's keys, and agreement with whole rankings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..losses.rank_masks import ranked_below
from ..modeling.forward import Outputs
from ..types import PreferencePairs, RankedResponses, pair_indices
from .objective import Objective, mean_per_prompt

Totals = dict[str, tuple[Tensor, Tensor]]
"""Numerator and denominator of each metric, so that processes and batches can be summed."""

RANKING_ONLY = ("/top1_accuracies", "/kendall_tau")
"""Suffixes of metrics that repeat the accuracy if every prompt of a batch has two responses."""


class MetricSums:
    """Adds up the totals of a step's micro-batches, so that the metrics don't depend on how the step is cut."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._rankings = self._tokens = 0.0

    def add(self, names: Iterable[str], sums: Sequence[float]) -> None:
        """Add a micro-batch.

        Args:
            names: names of the metrics.
            sums: summed over all processes: numerator and denominator of each metric, then the number of processes
                with more than two responses to a prompt, and the number of tokens.
        """
        *totals, rankings, tokens = sums
        for name, numerator, denominator in zip(names, totals[::2], totals[1::2], strict=True):
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + numerator, before[1] + denominator)
        self._rankings += rankings
        self._tokens += tokens

    def means(self) -> tuple[dict[str, float], int]:
        """Return the metrics, and the number of tokens."""
        metrics = {
            name: numerator / denominator if denominator else 0.0
            for name, (numerator, denominator) in self._sums.items()
            if self._rankings or not name.endswith(RANKING_ONLY)
        }
        return metrics, int(self._tokens)


def best_mask(responses: RankedResponses) -> Tensor:
    """Return [B, K] bool: the best-ranked responses of each prompt (several if they tie)."""
    return responses.mask & ~ranked_below(responses.ranks, responses.mask).any(dim=1)


def kendall_tau(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the order of the scores with the given ranking (Kendall's tau).

    Args:
        scores: [B, K] float, higher is better.
        ranks: [B, K] int64, 0 = best, equal = tied.
        mask: [B, K] bool, False = padding.

    Returns:
        tau [B] = (concordant - discordant) / comparable pairs, and the number of comparable pairs [B]. Pairs tied in
        the ranking aren't comparable. Pairs tied in score are neither concordant nor discordant. tau is 0 if no pair is
        comparable.

    >>> tau, pairs = kendall_tau(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2]]), torch.ones(1, 3) > 0)
    >>> round(tau.item(), 4), pairs.item()
    (0.3333, 3)
    """
    prompt, better, worse = pair_indices(ranks, mask)
    agreement = torch.sign(scores[prompt, better] - scores[prompt, worse])
    pairs = torch.bincount(prompt, minlength=len(ranks))
    total = agreement.new_zeros(len(ranks)).index_add(0, prompt, agreement)
    return total / pairs.clamp(min=1), pairs


@torch.no_grad()
def batch_metrics(
    objective: Objective, responses: RankedResponses, policy: Outputs, loss_metrics: Mapping[str, Tensor]
) -> Totals:
    """Return all metrics of a batch.

    Args:
        objective: the mix of losses.
        responses: B prompts, [B, K].
        policy: the policy's outputs for the batch.
        loss_metrics: the losses' own metrics, [B] each.
    """
    best_and_worst = objective.modifiers.length_weighted(responses.pairs("best_vs_worst"))
    totals = response_metrics(responses, best_and_worst, objective)
    entropy, logits, top1 = (policy.by_response(name) for name in ("entropy", "mean_logits", "is_top1"))
    totals |= token_metrics(entropy, logits, top1, responses)
    prompts = torch.tensor(len(responses))
    return totals | {name: (values.sum(), prompts) for name, values in loss_metrics.items()}


def response_metrics(responses: RankedResponses, best_and_worst: PreferencePairs, objective: Objective) -> Totals:
    """Return log-probs and rewards of the best and worst responses, and the agreement of their order with the ranking.

    Args:
        responses: B prompts, [B, K].
        best_and_worst: the best and the worst response of each prompt, as pairs.
        objective: says what a reward is, see `Objective.rewards`.

    Returns:
        Totals over prompts: `logps/chosen` and `rejected`; `rewards/chosen`, `rejected`, `margins`, `accuracies` of
        best against worst, `top1_accuracies` and `kendall_tau`. Where a loss reads labels, totals over responses of
        `logps` and `rewards` of `desirable` and `undesirable` ones. The names don't depend on K, because all processes
        of a run sum their totals.
    """
    prompts = len(responses)
    reference = objective.reads_reference
    scores = objective.rewards(responses.log_ratios if reference else None, responses.logps, responses.mean_logps)
    chosen = objective.rewards(
        best_and_worst.chosen_log_ratios if reference else None,
        best_and_worst.chosen_logps,
        best_and_worst.chosen_mean_logps,
    )
    rejected = objective.rewards(
        best_and_worst.rejected_log_ratios if reference else None,
        best_and_worst.rejected_logps,
        best_and_worst.rejected_mean_logps,
    )
    values = {
        "logps/chosen": best_and_worst.chosen_logps,
        "logps/rejected": best_and_worst.rejected_logps,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }
    assert best_and_worst.prompts is not None
    ranked = torch.bincount(best_and_worst.prompts, minlength=prompts) > 0  # False if all responses are tied
    count = ranked.sum()
    totals: Totals = {k: (mean_per_prompt(v, best_and_worst, prompts).sum(), count) for k, v in values.items()}
    floor, best = torch.finfo(scores.dtype).min, best_mask(responses)
    # Strict, so that a policy that gives all responses the same score gets 0, whatever the order of the columns.
    others = scores.masked_fill(best | ~responses.mask, floor).amax(dim=1)
    hit = scores.masked_fill(~best, floor).amax(dim=1) > others
    tau, _ = kendall_tau(scores, responses.ranks, responses.mask)
    totals["rewards/top1_accuracies"] = ((hit & ranked).float().sum(), count)
    totals["rewards/kendall_tau"] = (tau.sum(), count)
    if responses.labels is not None:
        for name, which in (("desirable", responses.labels > 0), ("undesirable", responses.labels < 0)):
            which = which & responses.mask
            totals[f"logps/{name}"] = (responses.logps[which].sum(), which.sum())
            totals[f"rewards/{name}"] = (scores[which].sum(), which.sum())
    return totals


def token_metrics(entropy: Tensor, logits: Tensor, top1: Tensor, responses: RankedResponses) -> Totals:
    """Return token-level statistics of the policy.

    Args:
        entropy, logits, top1: [B, K, T] float, 0 past each response's end: entropy of the next-token distribution
            (nats), mean logit, and 1 if the token is the most likely one.
        responses: B prompts, [B, K].

    Returns:
        Totals over tokens: `entropy` over all responses, `logits/chosen` and `mean_token_accuracy` over the
        best, `logits/rejected` over the others.
    """
    best = best_mask(responses)
    others = responses.mask & ~best
    lengths = responses.lengths

    def over(values: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        return values.sum(dim=2)[which].sum(), lengths[which].sum()

    return {
        "entropy": over(entropy, responses.mask),
        "logits/chosen": over(logits, best),
        "logits/rejected": over(logits, others),
        "mean_token_accuracy": over(top1, best),
    }
