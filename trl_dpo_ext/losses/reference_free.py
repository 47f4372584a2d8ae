"""Losses that read only the policy: no reference model is loaded and no reference forward runs."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ..types import PreferencePairs, RankedResponses
from .spec import register_loss


@register_loss("reference_free_dpo", paper="2305.18290", reference_free=True)
def reference_free_dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """DPO against a uniform reference: the logistic loss on the difference of the summed log-probs.

    Equation:
        -log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))), with `pairs.chosen_logps` and `pairs.rejected_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats; the reference's are not read.
        beta: scale of the log-prob difference.

    Returns:
        [N] loss, nats; log 2 where both responses are equally likely.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, lengths = torch.tensor([-3.0]), torch.tensor([2])
        >>> round(reference_free_dpo(PreferencePairs(logps, logps, None, None, lengths, lengths)).item(), 4)
        0.6931

    Reference:
        The `reference_free` option of the DPO authors' own code; arXiv 2305.18290 for the loss it reduces.

    Departures:
        Their option zeroes the reference inside the loss and still runs it; here no reference exists.

    Relations:
        `dpo` with a reference that gives every response the same probability.
    """
    return -F.logsigmoid(beta * (pairs.chosen_logps - pairs.rejected_logps))


@register_loss("simpo", paper="2405.14734", reference_free=True, length_normalized=True)
def simpo(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 2.0,
    gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5,
) -> Tensor:
    """SimPO: length-normalised log-probs as the reward, with a target margin and no reference.

    Equation:
        -log sigmoid(beta * (m_w - m_l) - gamma), gamma = gamma_beta_ratio * beta, with the mean log-prob per token
        m_w = `pairs.chosen_mean_logps`, m_l = `pairs.rejected_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.
        beta: scale of the reward.
        gamma_beta_ratio: target margin as a share of beta.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> pairs = PreferencePairs(torch.tensor([-2.0]), torch.tensor([-6.0]), None, None, torch.tensor([2]),
        ...                         torch.tensor([4]))  # means -1 and -1.5, so the margin 0.5 meets its target
        >>> round(simpo(pairs).item(), 4)
        0.6931

    Reference:
        arXiv 2405.14734, Eq. 6.

    Departures:
        gamma is given as its ratio to beta, the form in which the authors tune it.

    Relations:
        `reference_free_dpo` on per-token means, at gamma_beta_ratio = 0.
    """
    margins = pairs.chosen_mean_logps - pairs.rejected_mean_logps
    return -F.logsigmoid(beta * (margins - gamma_beta_ratio))


@register_loss("sft", paper="2305.18290", aliases=["preferred_ft"], reference_free=True, couples_batch=True)
def sft(responses: RankedResponses) -> Tensor:
    """Preferred fine-tuning: the negative log-likelihood of the best response, per token of the batch.

    Equation:
        -log pi(y_best|x) / mean over the batch of |y_best|, so that the mean over the batch is the mean over its
        tokens; `responses.logps` and `responses.lengths` where `responses.ranks` is lowest. Responses tied for the
        best count in equal parts.

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
        None.

    Relations:
        TRL's `sft` at K = 2.
    """
    ranks = responses.ranks.masked_fill(~responses.mask, responses.ranks.max() + 1)
    best = (ranks == ranks.min(dim=1, keepdim=True).values) & responses.mask
    share = best / best.sum(dim=1, keepdim=True).clamp(min=1)
    logps = (responses.logps.masked_fill(~best, 0) * share).sum(dim=1)
    lengths = (responses.lengths.masked_fill(~best, 0) * share).sum(dim=1)
    usable = best.any(dim=1)
    return -logps * usable.sum() / lengths.sum().clamp(min=1)
