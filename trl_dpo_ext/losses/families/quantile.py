"""Losses that regress the log-ratio on the quantile of a score among samples of the reference."""

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from ...types import RankedResponses
from ..loss_registry import register_loss
from ..rank_masks import zero_masked


def _log_partition(beta: float) -> float:
    """Return log Z = log(beta (exp(1 / beta) - 1)), without overflow."""
    return math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta))


def _share(below: Tensor, existing: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, K] which share of the last dimension is below; 0 where nothing exists."""
    return below.sum(dim=2).to(dtype) / existing.sum(dim=2).clamp(min=1)


def _regression(responses: RankedResponses, quantiles: Tensor, beta: float) -> Tensor:
    """[B] mean squared error of beta times the log-ratios against the calibrated quantiles."""
    mask, responses = responses.mask, zero_masked(responses)
    errors = (quantiles - beta * _log_partition(beta) - beta * responses.log_ratios) ** 2
    return errors.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


@register_loss("qrpo", paper="2507.08068", needs=["scores", "reference_scores"], single_responses=True)
def qrpo(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Quantile Reward Policy Optimization: regress each log-ratio on where its score lies among the reference's.

    Equation:
        (q - beta * log Z - beta * D)^2, with D = `responses.log_ratios`, q the share of `responses.reference_scores`
        that are at most the response's score, and Z = beta * (exp(1 / beta) - 1).

    Args:
        responses: B prompts, [B, K] float log-probs in nats and scores, with a reference, and [B, M] scores of samples
            of the reference; ragged K and M through their masks.
        beta: strength of the KL penalty.

    Returns:
        [B] mean over the prompt's responses; 0 for a fully masked row.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no scores, or none of the reference.

    Example:
        >>> import math, torch
        >>> from trl_dpo_ext import RankedResponses
        >>> log_z = math.log(math.e - 1)  # at beta = 1
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1).long()
        >>> responses = RankedResponses(zero + 0.5 - log_z, zero, one, one, one > 0, scores=zero,
        ...                             reference_scores=torch.tensor([[-1.0, 1.0]]),
        ...                             reference_scores_mask=torch.ones(1, 2) > 0)
        >>> abs(round(qrpo(responses, beta=1.0).item(), 6))  # q = 1/2
        0.0

    Reference:
        arXiv 2507.08068, checked against the authors' code (src/qrpo/trainers/qrpo.py, transform "identity", loss
        "mse"); only the paper's abstract could be read here. The default of beta is ours.

    Departures:
        The authors' code takes Z = beta * exp(1 / beta), without the -1, which changes beta * log Z by less than 5e-6
        at beta = 0.1 and by 0.46 at beta = 1.

    Relations:
        `qrpo_group` where the reference's scores are those of the other responses.
    """
    scores, samples = responses.required_scores(), responses.required("reference_scores")
    existing = responses.required("reference_scores_mask").unsqueeze(1)
    below = (samples.unsqueeze(1) <= scores.unsqueeze(2)) & existing
    return _regression(responses, _share(below, existing, responses.logps.dtype), beta)


@register_loss("qrpo_group", paper="2507.08068", needs=["scores"])
def qrpo_group(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """QRPO whose quantiles come from the prompt's other responses, for responses sampled from the reference.

    Equation:
        (q - beta * log Z - beta * D)^2, with D = `responses.log_ratios`, q the share of the other responses of the
        prompt whose score is at most the response's, and Z = beta * (exp(1 / beta) - 1).

    Args:
        responses: B prompts, [B, K] float log-probs in nats and scores, with a reference; ragged K through
            `responses.mask`. The quantiles are right only if the responses are samples of the reference.
        beta: strength of the KL penalty.

    Returns:
        [B] mean over the prompt's responses; 0 for a fully masked row.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks = torch.zeros(1, 2), torch.tensor([[0, 1]])
        >>> responses = RankedResponses(zeros, zeros, ranks + 1, ranks, ranks >= 0, torch.tensor([[1.0, 0.0]]))
        >>> log_z = torch.log(torch.tensor(torch.e) - 1)
        >>> expected = ((1 - log_z) ** 2 + log_z**2) / 2
        >>> abs(round((qrpo_group(responses, beta=1.0) - expected).item(), 5))
        0.0

    Reference:
        arXiv 2507.08068; the estimate from the group is ours.

    Departures:
        As `qrpo`. The paper estimates the quantile from further samples of the reference.

    Relations:
        `qrpo` where the reference's scores are those of the other responses.
    """
    scores, mask = responses.required_scores().masked_fill(~responses.mask, 0), responses.mask
    others = mask.unsqueeze(1) & mask.unsqueeze(2) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    below = (scores.unsqueeze(1) <= scores.unsqueeze(2)) & others
    return _regression(responses, _share(below, others, responses.logps.dtype), beta)
