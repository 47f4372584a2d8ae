"""What a run logs: TRL's keys, and agreement with whole rankings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..losses.rank_masks import ranked_below
from ..modeling.forward import TokenOutputs
from ..types import PreferencePairs, RankedResponses, pair_indices
from .objective import Objective, mean_over_prompts

Totals = dict[str, tuple[Tensor, Tensor]]
"""Numerator and denominator of each metric, so that ranks and batches can be added up."""

RANKING_ONLY = ("/top1_accuracies", "/kendall_tau")
"""Endings of the metrics that say no more than the accuracy where no prompt of a batch has over two responses."""


def best_mask(responses: RankedResponses) -> Tensor:
    """Return [B, K] bool: the responses of the best rank of each prompt (several where they tie)."""
    return responses.mask & ~ranked_below(responses.ranks, responses.mask).any(dim=1)


def kendall_tau(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the order by score with the given ranking.

    Args:
        scores: [B, K] float, higher is better.
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.

    Returns:
        (tau [B], pairs [B]): (concordant - discordant) / comparable pairs, and their number. Pairs tied in the ranking
        aren't comparable; pairs tied in score count as neither. tau is 0 where nothing is comparable.

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
    objective: Objective, responses: RankedResponses, policy: TokenOutputs, loss_metrics: Mapping[str, Tensor]
) -> Totals:
    """Return all metrics of a batch.

    Args:
        objective: the mix of losses.
        responses: B prompts, [B, K].
        policy: the policy's outputs for the batch.
        loss_metrics: the losses' own metrics, [B] each.
    """
    ends = objective.modifiers.length_weighted(responses.pairs("best_vs_worst"))
    totals = response_metrics(responses, ends, objective)
    entropy, logits, top1 = (policy.by_response(name) for name in ("entropy", "mean_logits", "is_top1"))
    totals |= token_metrics(entropy, logits, top1, responses)
    prompts = torch.tensor(len(responses))
    return totals | {name: (values.sum(), prompts) for name, values in loss_metrics.items()}


def response_metrics(responses: RankedResponses, ends: PreferencePairs, objective: Objective) -> Totals:
    """Log-probs and rewards of the best and the worst response, and how well the implied order fits the ranking.

    Args:
        responses: B prompts, [B, K].
        ends: the best and the worst response of each prompt, as pairs.
        objective: says what a reward is, see `Objective.rewards`.

    Returns:
        Totals over prompts: `logps/chosen` and `rejected`; `rewards/chosen`, `rejected`, `margins`, `accuracies` of
        best against worst, `top1_accuracies` and `kendall_tau`. The same names for every K: the processes of a run add
        their totals up.
    """
    prompts = len(responses)
    reference = objective.reads_reference
    scores = objective.rewards(responses.log_ratios if reference else None, responses.logps, responses.mean_logps)
    chosen = objective.rewards(ends.chosen_log_ratios if reference else None, ends.chosen_logps, ends.chosen_mean_logps)
    rejected = objective.rewards(
        ends.rejected_log_ratios if reference else None, ends.rejected_logps, ends.rejected_mean_logps
    )
    values = {
        "logps/chosen": ends.chosen_logps,
        "logps/rejected": ends.rejected_logps,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }
    assert ends.prompts is not None
    ranked = torch.bincount(ends.prompts, minlength=prompts) > 0  # not those whose responses are all tied
    count = ranked.sum()
    totals: Totals = {k: (mean_over_prompts(v, ends, prompts).sum(), count) for k, v in values.items()}
    floor, best = torch.finfo(scores.dtype).min, best_mask(responses)
    # Strictly above all others, so that a policy that tells nothing apart scores 0, not the order of the columns.
    others = scores.masked_fill(best | ~responses.mask, floor).amax(dim=1)
    hit = scores.masked_fill(~best, floor).amax(dim=1) > others
    tau, _ = kendall_tau(scores, responses.ranks, responses.mask)
    totals["rewards/top1_accuracies"] = ((hit & ranked).float().sum(), count)
    totals["rewards/kendall_tau"] = (tau.sum(), count)
    return totals


def token_metrics(entropy: Tensor, logits: Tensor, top1: Tensor, responses: RankedResponses) -> Totals:
    """Token-level statistics of the policy.

    Args:
        entropy, logits, top1: [B, K, T] float, 0 past each response's end: entropy of the next-token distribution
            (nats), mean logit, and whether the token is the most likely one.
        responses: B prompts, [B, K].

    Returns:
        Totals over tokens: `entropy` over all responses, `logits/chosen` and `mean_token_accuracy` over the best,
        `logits/rejected` over the others.
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
