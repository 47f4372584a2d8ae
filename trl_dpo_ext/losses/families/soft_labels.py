"""Losses that learn a distribution over the responses from their scores, not just the order."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ...types import RankedResponses
from ..loss_registry import register_loss
from ..rank_masks import zero_masked


def _log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """[B, K] log-softmax over the responses that exist; 0 for the others."""
    lowest = torch.finfo(values.dtype).min  # not -inf, which gives NaN for a fully masked row
    return values.masked_fill(~mask, lowest).log_softmax(dim=1).masked_fill(~mask, 0)


@register_loss("info_nca", paper="2402.05369", f_divergence=True, needs=["scores"])
def info_nca(
    responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.01, alpha: Annotated[float, Gt(0)] = 1.0
) -> Tensor:
    """InfoNCA: cross-entropy between the softmax of the scores and the softmax of the implicit rewards.

    Equation:
        -sum_i q_i log softmax(s)_i, s = beta * `responses.log_ratios`, q = softmax(`responses.scores` / alpha).

    Args:
        responses: B prompts, [B, K] float log-probs in nats and scores, with a reference; ragged K through
            `responses.mask`.
        beta: strength of the KL penalty.
        alpha: temperature of the scores; a small alpha puts all weight on the best response.

    Returns:
        [B] loss, nats; 0 for a fully masked row, log K where policy and reference agree.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks = torch.zeros(1, 4), torch.arange(4).unsqueeze(0)
        >>> responses = RankedResponses(zeros, zeros, ranks + 1, ranks, ranks >= 0, scores=torch.randn(1, 4))
        >>> round(info_nca(responses).exp().item(), 4)
        4.0

    Reference:
        arXiv 2402.05369; the authors' code has the same expression. The default of alpha is ours: the right
        value depends on the scale of the scores.

    Departures:
        None.

    Relations:
        `dpo` at K = 2, where the scores put all weight on the chosen response.
        `softmax_dpo` where the scores put all weight on the best response.
    """
    mask, responses = responses.mask, zero_masked(responses)
    q = _log_softmax(responses.required_scores() / alpha, mask).exp()
    return -(q * _log_softmax(beta * responses.log_ratios, mask)).sum(dim=1)


@register_loss("nca", paper="2402.05369", needs=["scores"])
def nca(
    responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.01, alpha: Annotated[float, Gt(0)] = 1.0
) -> Tensor:
    """Noise Contrastive Alignment: classify each response as drawn from the scores' softmax or the reference.

    Equation:
        -sum_i [q_i log sigmoid(s_i) + log sigmoid(-s_i) / K], s = beta * `responses.log_ratios`,
        q = softmax(`responses.scores` / alpha), K the number of responses.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and scores, with a reference; ragged K through
            `responses.mask`.
        beta: strength of the KL penalty.
        alpha: temperature of the scores; a small alpha puts all weight on the best response.

    Returns:
        [B] loss, nats; 0 for a fully masked row, 2 log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks = torch.zeros(1, 3), torch.arange(3).unsqueeze(0)
        >>> responses = RankedResponses(zeros, zeros, ranks + 1, ranks, ranks >= 0, scores=torch.randn(1, 3))
        >>> round(nca(responses).exp().item(), 4)
        4.0

    Reference:
        arXiv 2402.05369; the authors' code has the same expression. The default of alpha is ours: the right
        value depends on the scale of the scores.

    Departures:
        None.

    Relations:
        `nca_pair` at K = 2, where the scores put all weight on the chosen response.
    """
    mask, responses = responses.mask, zero_masked(responses)
    rewards = beta * responses.log_ratios
    q = _log_softmax(responses.required_scores() / alpha, mask).exp()
    terms = q * F.logsigmoid(rewards) + F.logsigmoid(-rewards) / mask.sum(dim=1, keepdim=True)
    return -terms.masked_fill(~mask, 0).sum(dim=1)


@register_loss("exo", paper="2402.00856", f_divergence=True, needs=["scores"])
def exo(
    responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.1, beta_r: Annotated[float, Gt(0)] = 0.1
) -> Tensor:
    """Efficient Exact Optimization: reverse KL between the softmaxes of the implicit rewards and of the scores.

    Equation:
        sum_i p_i (log p_i - log q_i), p = softmax(beta * `responses.log_ratios`), q = softmax(`responses.scores` /
        beta_r).

    Args:
        responses: B prompts, [B, K] float log-probs in nats and scores, with a reference; ragged K through
            `responses.mask`.
        beta: strength of the KL penalty of the policy (beta_pi in the paper).
        beta_r: temperature of the scores.

    Returns:
        [B] loss, nats; 0 for a fully masked row and where both distributions agree.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks = torch.zeros(1, 3), torch.arange(3).unsqueeze(0)
        >>> scores = torch.tensor([[3.0, 2.0, 0.0]])
        >>> responses = RankedResponses(10 * scores, zeros, ranks + 1, ranks, ranks >= 0, scores)
        >>> exo(responses, beta=0.1, beta_r=1.0).item()
        0.0

    Reference:
        arXiv 2402.00856; the defaults are those of the authors' IMDb experiment.

    Departures:
        None.

    Relations:
        `exo_pair` at K = 2, for scores whose softmax is (1 - label_smoothing, label_smoothing).
    """
    mask, responses = responses.mask, zero_masked(responses)
    log_p = _log_softmax(beta * responses.log_ratios, mask)
    log_q = _log_softmax(responses.required_scores() / beta_r, mask)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
