"""Losses over whole rankings of K responses."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ...types import RankedResponses
from ..loss_registry import register_loss
from ..rank_masks import ranked_below, zero_masked


def plackett_luce_nll(
    rewards: Tensor, ranks: Tensor, mask: Tensor, *, beta: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Return the negative log-likelihood of rankings under the Plackett-Luce model with scores beta * rewards.

    Each response contributes the probability that it is picked before all responses ranked below it. Tied responses
    are not compared with each other. Without ties, the product of these factors is the Plackett-Luce probability of the
    order. With ties, it is a lower bound on the probability of the orders that the ties allow, so the loss is an upper
    bound on the exact negative log-likelihood. A prompt whose responses are all tied gives no gradient, as in pairs.

    Args:
        rewards: [B, K] float.
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.
        beta: factor on the rewards, applied to their differences so that K = 2 rounds like the logistic loss.
        top_k: use only the factors of the k best responses; the others stay in every denominator.

    Returns:
        [B] float, nats; 0 for a fully masked row.
    """
    lower = ranked_below(ranks, mask)
    lead = beta * (rewards.unsqueeze(1) - rewards.unsqueeze(2))  # [B, i, j]: s_j - s_i
    # log(1 + sum_j exp(s_j - s_i)); the 1 is response i itself.
    rest = lead.masked_fill(~lower, torch.finfo(lead.dtype).min).logsumexp(dim=2)
    counted = lower.any(dim=2)
    if top_k is not None:
        counted &= lower.sum(dim=1) < top_k  # fewer than k responses stand above
    return -F.logsigmoid(-rest).masked_fill(~counted, 0).sum(dim=1)


def pairwise_logistic(rewards: Tensor, ranks: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Return the sum over all better-worse pairs of log(1 + exp(-beta * (rewards_i - rewards_j))).

    Args:
        rewards: [B, K] float, finite also where the mask is False.
        ranks: [B, K] int64, 0 = best, equal = tie, which gives no pair.
        mask: [B, K] bool, False = no such response.
        beta: factor on the rewards.

    Returns:
        [B] float, nats; 0 for a fully masked row.
    """
    lead = beta * (rewards.unsqueeze(2) - rewards.unsqueeze(1))  # [B, i, j]: s_i - s_j
    return -(F.logsigmoid(lead) * ranked_below(ranks, mask)).sum(dim=(1, 2))


@register_loss("plackett_luce", paper="2305.18290", aliases=["list_mle"], f_divergence=True)
def plackett_luce(
    responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.1, top_k: Annotated[int | None, Ge(1)] = None
) -> Tensor:
    """DPO over a whole ranking: the Plackett-Luce likelihood of the given order under the implicit rewards.

    Equation:
        sum_k [ logsumexp_{j >= k} s_j - s_k ], s = beta * `responses.log_ratios`, responses in order of
        `responses.ranks`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats, with a reference; ragged K through `responses.mask`.
        beta: strength of the KL penalty.
        top_k: use only the factors of the k best responses (a partial ranking); None: all of them.

    Returns:
        [B] loss, nats; 0 for a fully masked row. Where policy and reference agree, log K! for a full ranking of K.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros = torch.zeros(1, 3)
        >>> responses = RankedResponses(zeros, zeros, zeros.long(), torch.tensor([[2, 0, 1]]), zeros == 0)
        >>> round(plackett_luce(responses).exp().item(), 4)
        6.0

    Reference:
        arXiv 2305.18290, Eq. 18 to 20 (appendix A.3), from secondary sources, derived again, and checked against
        the exact enumeration of orders. LiPO (arXiv 2402.01878) calls the same loss ListMLE.

    Departures:
        The paper has no ties. Here tied responses are not compared with each other, see `plackett_luce_nll`.

    Relations:
        `dpo` at K = 2, to the last bit of float32.
    """
    return plackett_luce_nll(responses.log_ratios, responses.ranks, responses.mask, beta=beta, top_k=top_k)


@register_loss("softmax_dpo", paper="2406.09215", aliases=["s_dpo"], f_divergence=True)
def softmax_dpo(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """Softmax-DPO: the best response against all others at once, in no order.

    Equation:
        -log softmax(s)_best, s = beta * `responses.log_ratios`, over all responses; the best has the lowest
        `responses.ranks`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats, with a reference; ragged K through `responses.mask`.
        beta: strength of the KL penalty.

    Returns:
        [B] loss, nats; 0 for a fully masked row, log K where policy and reference agree.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros = torch.zeros(1, 4)
        >>> responses = RankedResponses(zeros, zeros, zeros.long(), torch.tensor([[1, 0, 1, 1]]), zeros == 0)
        >>> round(softmax_dpo(responses).exp().item(), 4)
        4.0

    Reference:
        arXiv 2406.09215 (S-DPO).

    Departures:
        None in value. The authors' code sums exponentials, which overflow; here it is a logsumexp. Responses tied for
        the best are not compared with each other; each contributes a term against those below.

    Relations:
        `plackett_luce` at top_k = 1.
        `dpo` at K = 2.
    """
    return plackett_luce_nll(responses.log_ratios, responses.ranks, responses.mask, beta=beta, top_k=1)


@register_loss("rank_net", paper="2402.01878", f_divergence=True)
def rank_net(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.05) -> Tensor:
    """RankNet: the DPO loss summed over every pair of a ranking.

    Equation:
        sum over pairs with i above j of log(1 + exp(-(s_i - s_j))), s = beta * `responses.log_ratios`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats, with a reference; ragged K through `responses.mask`.
        beta: strength of the KL penalty.

    Returns:
        [B] loss, nats, summed over pairs; 0 for a fully masked row.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros = torch.zeros(1, 3)
        >>> responses = RankedResponses(zeros, zeros, zeros.long(), torch.tensor([[2, 0, 1]]), zeros == 0)
        >>> round(rank_net(responses).exp().item(), 4)  # 2 to the number of pairs
        8.0

    Reference:
        arXiv 2402.01878 (LiPO), the pairwise logistic ranking loss, from secondary sources.

    Departures:
        None. `dpo` with pairing "all" averages over the pairs of a prompt instead, so that prompts with many responses
        don't count more.

    Relations:
        `dpo` summed over all pairs of a ranking.
    """
    return pairwise_logistic(zero_masked(responses).log_ratios, responses.ranks, responses.mask, beta=beta)


@register_loss("lipo_lambda", paper="2402.01878", f_divergence=True, needs=["scores"])
def lipo_lambda(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.05) -> Tensor:
    """LiPO-lambda: every pair of a ranking, weighted by how much a swap would change the ranking's quality.

    Equation:
        sum over pairs with i above j of |2^r_i - 2^r_j| * |1 / log(1 + t_i) - 1 / log(1 + t_j)| *
        log(1 + exp(-(s_i - s_j))), s = beta * `responses.log_ratios`, r = `responses.scores` and t the position of a
        response (1, 2, ...) when the policy sorts them by s. The weights have no gradient.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and scores, with a reference; ragged K through
            `responses.mask`.
        beta: strength of the KL penalty.

    Returns:
        [B] loss, summed over pairs; 0 for a fully masked row.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, scores = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> responses = RankedResponses(zeros, zeros, zeros.long(), torch.tensor([[0, 1]]), zeros == 0, scores)
        >>> round(lipo_lambda(responses).item(), 4)  # (2 - 1) * (1 / log 2 - 1 / log 3) * log 2
        0.3691

    Reference:
        arXiv 2402.01878, Eq. 8, from secondary sources. The paper's scores are win rates from 0 to 1. Gains grow
        as 2^r, so rescale other scores to that range.

    Departures:
        Where the policy gives two responses the same s (as at the first step), they are placed in column order.

    Relations:
        `dpo` at K = 2, times the weight of the pair.
    """
    mask, responses = responses.mask, zero_masked(responses)
    rewards = beta * responses.log_ratios
    with torch.no_grad():
        order = rewards.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
        discount = 1 / (order.argsort(dim=1) + 2).to(rewards.dtype).log()
        gain = responses.required_scores().exp2()
        weight = (gain.unsqueeze(2) - gain.unsqueeze(1)).abs() * (discount.unsqueeze(2) - discount.unsqueeze(1)).abs()
        weight *= ranked_below(responses.ranks, mask)
    return -(weight * F.logsigmoid(rewards.unsqueeze(2) - rewards.unsqueeze(1))).sum(dim=(1, 2))  # [B, i, j]: s_i - s_j
