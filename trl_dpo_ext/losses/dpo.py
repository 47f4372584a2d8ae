"""DPO: the logistic loss on the difference of the two log-ratios."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ..types import PreferencePairs
from .spec import register_loss


@register_loss("dpo", paper="2305.18290", aliases=["sigmoid"], f_divergence=True)
def dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Direct Preference Optimization: logistic regression on the implicit reward margin.

    Equation:
        -log sigmoid(beta * (D_w - D_l)), with D_w = `pairs.chosen_log_ratios`, D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty; a larger beta keeps the policy closer to the reference.

    Returns:
        [N] loss, nats. A pair the policy doesn't yet separate (D_w = D_l) costs log 2.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(one, zero, zero, zero, one, one)  # margin 1
        >>> dpo(pairs, beta=1.0).item() - torch.log1p(torch.exp(torch.tensor(-1.0))).item()
        0.0

    Reference:
        arXiv 2305.18290, Eq. 7.

    Departures:
        None.

    Relations:
        `plackett_luce` at K = 2.
    """
    return -F.logsigmoid(beta * pairs.margins)
