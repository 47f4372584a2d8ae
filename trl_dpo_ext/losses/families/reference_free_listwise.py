"""Listwise losses without a reference."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ...types import RankedResponses
from ..kinks import positive_part
from ..loss_registry import register_loss
from ..rank_masks import best_weights, ranked_below, zero_masked
from .listwise import pairwise_logistic, plackett_luce_nll


@register_loss(
    "reference_free_plackett_luce",
    paper="2402.01878",
    aliases=["reference_free_list_mle"],
    reference_free=True,
    length_normalized=True,
)
def reference_free_plackett_luce(
    responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 2.0, top_k: Annotated[int | None, Ge(1)] = None
) -> Tensor:
    """Plackett-Luce on length-normalised log-probs: the likelihood of the ranking, without a reference.

    Equation:
        sum_k [ logsumexp_{j >= k} s_j - s_k ], s = beta * `responses.mean_logps`, responses in order of
        `responses.ranks`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and lengths in tokens; ragged K through `responses.mask`.
        beta: scale of the mean log-prob per token.
        top_k: use only the factors of the k best responses (a partial ranking); None: all of them.

    Returns:
        [B] loss, nats; 0 for a fully masked row.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> logps, ranks = torch.tensor([[-2.0, -4.0, -6.0]]), torch.tensor([[0, 1, 2]])
        >>> responses = RankedResponses(logps, None, torch.tensor([[1, 2, 3]]), ranks, ranks >= 0)  # -2 a token, all
        >>> round(reference_free_plackett_luce(responses).exp().item(), 4)
        6.0

    Reference:
        ListMLE of arXiv 2402.01878 (LiPO), with SimPO's reward (arXiv 2405.14734) and its beta.

    Departures:
        Tied responses are not compared with each other, see `plackett_luce_nll`.

    Relations:
        `simpo` at gamma_beta_ratio = 0, for K = 2.
        `plackett_luce` where every response has one token and the same probability under the reference.
    """
    return plackett_luce_nll(responses.mean_logps, responses.ranks, responses.mask, beta=beta, top_k=top_k)


@register_loss("reference_free_rank_net", paper="2402.01878", reference_free=True, length_normalized=True)
def reference_free_rank_net(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 2.0) -> Tensor:
    """RankNet on length-normalised log-probs: the logistic loss on every pair of a ranking, without a reference.

    Equation:
        sum over pairs with i above j of log(1 + exp(-(s_i - s_j))), s = beta * `responses.mean_logps`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and lengths in tokens; ragged K through `responses.mask`.
        beta: scale of the mean log-prob per token.

    Returns:
        [B] loss, nats, summed over pairs; 0 for a fully masked row.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> logps, ranks = torch.tensor([[-2.0, -4.0, -6.0]]), torch.tensor([[0, 1, 2]])
        >>> responses = RankedResponses(logps, None, torch.tensor([[1, 2, 3]]), ranks, ranks >= 0)  # -2 a token, all
        >>> round(reference_free_rank_net(responses).exp().item(), 4)  # 2 to the number of pairs
        8.0

    Reference:
        The all-pairs logistic loss of arXiv 2402.01878 (LiPO), with SimPO's reward (arXiv 2405.14734) and its beta.

    Departures:
        None.

    Relations:
        `simpo` at gamma_beta_ratio = 0, summed over all pairs of a ranking.
    """
    return pairwise_logistic(zero_masked(responses).mean_logps, responses.ranks, responses.mask, beta=beta)


@register_loss("rrhf", paper="2304.05302", reference_free=True, length_normalized=True)
def rrhf(responses: RankedResponses, *, rank_weight: Annotated[float, Ge(0)] = 100.0) -> Tensor:
    """RRHF: a hinge without margin on every pair of a ranking, plus the likelihood of the best response.

    Equation:
        rank_weight * (sum over pairs with i above j of max(0, m_j - m_i)) - m_best, with the mean log-prob per token
        m = `responses.mean_logps`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and lengths in tokens; ragged K through `responses.mask`.
        rank_weight: weight of the ranking term.

    Returns:
        [B] loss, nats; 0 for a fully masked row.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> ranks = torch.tensor([[0, 1, 2]])
        >>> responses = RankedResponses(torch.tensor([[-3.0, -2.0, -4.0]]), None, ranks + 1, ranks, ranks >= 0)
        >>> rrhf(responses, rank_weight=1.0).item()  # means -3, -1, -4/3: (2 + 5/3) + 3
        6.666666507720947

    Reference:
        arXiv 2304.05302; the weight and the mean over tokens are from the authors' code.

    Departures:
        The paper has weight 1 and sums the log-prob of the best response; the authors' code has weight 100 and a mean
        over (padded) tokens. Here: weight 100 and the mean over the response's own tokens. Responses tied for the best
        share the likelihood term equally.

    Relations:
        `slic` at delta = 0 and lam = 1, for K = 2, rank_weight = 1 and responses of one token.
    """
    means = zero_masked(responses).mean_logps
    lead = means.unsqueeze(1) - means.unsqueeze(2)  # [B, i, j]: m_j - m_i
    hinge = positive_part(lead, slope_at_zero=0)
    ranking = (hinge * ranked_below(responses.ranks, responses.mask)).sum(dim=(1, 2))
    best = best_weights(responses.ranks, responses.mask, means.dtype)
    return rank_weight * ranking - (means * best).sum(dim=1)


@register_loss("pro", paper="2306.17492", reference_free=True, length_normalized=True, needs=["scores"])
def pro(responses: RankedResponses, *, sft_weight: Annotated[float, Ge(0)] = 0.05) -> Tensor:
    """Preference Ranking Optimization: each response against all below it, with temperatures from the score gaps.

    Equation:
        sum_k [log(exp(m_k T_k) + sum_{i below k} exp(m_i (r_k - r_i))) - m_k T_k] - w (K - 1)^2 log pi(y_best|x),
        T_k = max_{i below k} (r_k - r_i), with the mean log-prob per token m = `responses.mean_logps`,
        r = `responses.scores`, w = `sft_weight` and K the number of responses.

    Args:
        responses: B prompts, [B, K] float log-probs in nats, lengths in tokens and scores; ragged K through
            `responses.mask`.
        sft_weight: weight of the likelihood of the best response, per squared number of the others.

    Returns:
        [B] loss, nats; 0 for a fully masked row.

    Raises:
        MissingInputError: the responses hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> ranks, scores = torch.tensor([[0, 1]]), torch.tensor([[2.0, 1.0]])
        >>> responses = RankedResponses(torch.tensor([[-1.0, -2.0]]), None, ranks + 1, ranks, ranks >= 0, scores)
        >>> round(pro(responses, sft_weight=1.0).item(), 4)  # both means -1: log 2 + 1
        1.6931

    Reference:
        arXiv 2306.17492; temperatures, means and the weight of the likelihood term as in the authors' code.

    Departures:
        None without ties. Tied responses are not compared with each other, and those tied for the best share the
        likelihood term equally.

    Relations:
        `simpo` at beta = r_w - r_l and gamma_beta_ratio = 0, for K = 2 and sft_weight = 0.
    """
    mask, responses = responses.mask, zero_masked(responses)
    scores, means = responses.required_scores(), responses.mean_logps
    lower = ranked_below(responses.ranks, mask)
    lowest = torch.finfo(means.dtype).min
    gaps = scores.unsqueeze(2) - scores.unsqueeze(1)  # [B, k, i]: r_k - r_i
    widest = gaps.masked_fill(~lower, -torch.inf).amax(dim=2, keepdim=True)
    lead = means.unsqueeze(1) * gaps - means.unsqueeze(2) * widest.masked_fill(widest.isinf(), 0)
    rest = lead.masked_fill(~lower, lowest).logsumexp(dim=2)
    ranking = -F.logsigmoid(-rest).masked_fill(~lower.any(dim=2), 0).sum(dim=1)
    best = best_weights(responses.ranks, mask, means.dtype)
    likelihood = (responses.logps * best).sum(dim=1)
    others = (mask.sum(dim=1) - 1).to(means.dtype)
    return ranking - sft_weight * others**2 * likelihood


@register_loss("mppo", paper="2412.15244", reference_free=True, length_normalized=True)
def mppo(responses: RankedResponses) -> Tensor:
    """Multi Pair-wise Preference Optimization: the best response's mean token probability against all others at once.

    Equation:
        -log sigmoid(N p_w - sum over the rejected of p_l), with the geometric mean probability of a token p = exp(m),
        m = `responses.mean_logps`, the best response w and N the number of responses below it.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and lengths in tokens; ragged K through `responses.mask`.

    Returns:
        [B] loss, nats; 0 for a row with nothing below the best, a fully masked row among them.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> ranks = torch.tensor([[0, 1, 1]])
        >>> logps = torch.tensor([[0.5, 0.25, 0.75]]).log()
        >>> responses = RankedResponses(logps, None, torch.ones_like(ranks), ranks, ranks >= 0)  # 2 * 0.5 - 1
        >>> round(mppo(responses).item(), 4)
        0.6931

    Reference:
        arXiv 2412.15244, Eq. 10.

    Departures:
        The paper has one best response. Responses tied for the best enter with the mean of their probabilities.

    Relations:
        `alphapo` at alpha = -1, beta = 1 and gamma = 0, for K = 2.
    """
    mask, probabilities = responses.mask, zero_masked(responses).mean_logps.exp()
    best = best_weights(responses.ranks, mask, probabilities.dtype)
    rejected = ranked_below(responses.ranks, mask).any(dim=1)
    margins = rejected.sum(dim=1) * (probabilities * best).sum(dim=1) - (probabilities * rejected).sum(dim=1)
    return -F.logsigmoid(margins) * rejected.any(dim=1)


@register_loss(
    "sft", paper="2305.18290", aliases=["preferred_ft"], reference_free=True, couples_batch=True, f_divergence=True
)
def sft(responses: RankedResponses) -> Tensor:
    """Preferred fine-tuning: the negative log-likelihood of the best response, per token of the batch.

    Equation:
        -log pi(y_best|x) / mean over the batch of |y_best|, so that the mean over the batch is the mean over its
        tokens; `responses.logps` and `responses.lengths` where `responses.ranks` is lowest. Responses tied for the
        best have equal weights.

    Args:
        responses: B prompts, [B, K] float log-probs in nats; the reference's are not read.

    Returns:
        [B] loss, nats per token; 0 for a fully masked row.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> responses = RankedResponses(torch.tensor([[-4.0, -9.0]]), None, torch.tensor([[2, 3]]),
        ...                             torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
        >>> sft(responses).item()
        2.0

    Reference:
        arXiv 2305.18290, section 6 (Preferred-FT); the normalisation is that of TRL's `sft` loss.

    Departures:
        The trainer counts the tokens of the optimizer step; TRL counts those of each micro-batch of each process.
        `f_divergence_type` has no effect, as in TRL.

    Relations:
        `orpo` at lam = 0, for a batch of one prompt.
    """
    best = best_weights(responses.ranks, responses.mask, responses.logps.dtype)
    logps = (zero_masked(responses).logps * best).sum(dim=1)
    tokens = (responses.lengths * best).sum()
    return -logps * responses.mask.any(dim=1).sum() / tokens.clamp(min=1)
