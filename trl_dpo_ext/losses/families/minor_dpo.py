"""MinorDPO: DPO whose penalty on the rejected response stops once it is less likely than under the reference."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ...types import PreferencePairs
from ..kinks import positive_part
from ..loss_registry import register_loss


def _clipped(pairs: PreferencePairs, *, beta: float) -> dict[str, Tensor]:
    """[N] 1 where the rejected response is less likely than under the reference, so that its penalty is off."""
    return {"clipped": (pairs.rejected_log_ratios < 0).float()}


@register_loss("minor_dpo", paper="2408.09834", counters_displacement=True, metrics=_clipped)
def minor_dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """MinorDPO: push the rejected response down only while it is more likely than under the reference.

    Equation:
        -log sigmoid(beta * D_w - beta * max(0, D_l)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(zero, -one, zero, zero, one, one)  # D_l = -1 is clipped to 0
        >>> round(minor_dpo(pairs, beta=1.0).item(), 4)
        0.6931

    Reference:
        arXiv 2408.09834. Only the paper's abstract and introduction could be read. The formula is from public summaries
        and another public implementation, which agree with each other, and from a derivation.

    Departures:
        None in value. At D_l = 0 (the first step, where policy and reference agree) max(0, D_l) has no derivative. Here
        it is 1, so that the first step is a full DPO step.

    Relations:
        `dpo` where D_l >= 0.
    """
    penalty = positive_part(pairs.rejected_log_ratios, slope_at_zero=1)
    return -F.logsigmoid(beta * (pairs.chosen_log_ratios - penalty))
