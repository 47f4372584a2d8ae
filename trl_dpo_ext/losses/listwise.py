"""Losses over a whole ranking of K responses."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ..types import RankedResponses
from .spec import register_loss


def plackett_luce_nll(
    rewards: Tensor, ranks: Tensor, mask: Tensor, *, beta: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Return the negative log-likelihood of rankings under the Plackett-Luce model with scores beta * rewards.

    Each response contributes the factor "taken before all that stand below it". Tied responses are not compared with
    each other. Without ties the factors multiply to the Plackett-Luce probability of the order; with ties their product
    is a lower bound on the probability that any of the orders a tie allows comes up, so the loss is an upper bound on
    the exact negative log-likelihood, and a prompt whose responses are all tied teaches nothing (as in pairs).

    Args:
        rewards: [B, K] float.
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.
        beta: factor on the rewards, applied to their differences, so that K = 2 rounds as the logistic loss does.
        top_k: count only the factors of the k best places; the tail stays in every denominator.

    Returns:
        [B] float, nats; 0 for a fully masked row.
    """
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    below = (ranks.unsqueeze(1) > ranks.unsqueeze(2)) & both  # [B, i, j]: j stands below i
    lead = beta * (rewards.unsqueeze(1) - rewards.unsqueeze(2))  # s_j - s_i
    # log(1 + sum_j exp(s_j - s_i)); the 1 is response i itself.
    rest = lead.masked_fill(~below, torch.finfo(lead.dtype).min).logsumexp(dim=2)
    counted = below.any(dim=2)
    if top_k is not None:
        above = (ranks.unsqueeze(1) < ranks.unsqueeze(2)) & both
        counted &= above.sum(dim=2) < top_k
    return -F.logsigmoid(-rest).masked_fill(~counted, 0).sum(dim=1)


@register_loss("plackett_luce", paper="2305.18290")
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
        top_k: count only the factors of the k best places (a partial ranking); all of them when None.

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
        arXiv 2305.18290, Eq. 18-20 (appendix A.3), as given by a secondary source and derived again.

    Departures:
        The paper has no ties. Here tied responses are not compared with each other, see `plackett_luce_nll`.

    Relations:
        `dpo` at K = 2.
    """
    return plackett_luce_nll(responses.log_ratios, responses.ranks, responses.mask, beta=beta, top_k=top_k)
