"""Losses that learn from ties, pairs of equally good responses."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ...types import PreferencePairs
from ..loss_registry import register_loss


@register_loss("dpo_rk", paper="2409.17431", f_divergence=True, needs=["ties"])
def dpo_rk(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, nu: Annotated[float, Gt(1)] = 3.0) -> Tensor:
    """DPO under the Rao-Kupper model, in which ties have a probability of their own.

    Equation:
        -log sigmoid(u - log nu) for a win; -log((nu^2 - 1) sigmoid(u - log nu) sigmoid(-u - log nu)) for a tie
        (`pairs.ties`), with u = beta * `pairs.margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference and ties.
        beta: strength of the KL penalty.
        nu: how likely ties are; at 3, responses of equal reward tie half of the time.

    Returns:
        [N] loss, nats.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no ties field.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(2), torch.ones(2)
        >>> pairs = PreferencePairs(zero, zero, zero, zero, one, one, ties=torch.tensor([False, True]))
        >>> [round(x, 4) for x in (-dpo_rk(pairs)).exp().tolist()]  # win, tie (and loss) at equal rewards
        [0.25, 0.5]

    Reference:
        arXiv 2409.17431. From the abstract and secondary descriptions; the probabilities are derived from the
        Rao-Kupper model and checked to sum to 1.

    Departures:
        None.

    Relations:
        `dpo` as nu goes to 1, where no pair is a tie.
    """
    u = beta * pairs.margins
    win = F.logsigmoid(u - math.log(nu))
    tie = math.log(nu**2 - 1) + win + F.logsigmoid(-u - math.log(nu))
    return -torch.where(pairs.required("ties"), tie, win)


@register_loss("dpo_davidson", paper="2409.17431", f_divergence=True, needs=["ties"])
def dpo_davidson(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, nu: Annotated[float, Gt(0)] = 1.0
) -> Tensor:
    """DPO under the Davidson model, in which ties have a probability of their own.

    Equation:
        log(1 + exp(-u) + 2 nu exp(-u / 2)) for a win; the same plus u / 2 - log(2 nu) for a tie (`pairs.ties`), with
        u = beta * `pairs.margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference and ties.
        beta: strength of the KL penalty.
        nu: how likely ties are; at 1, responses of equal reward tie half of the time.

    Returns:
        [N] loss, nats.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no ties field.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(2), torch.ones(2)
        >>> pairs = PreferencePairs(zero, zero, zero, zero, one, one, ties=torch.tensor([False, True]))
        >>> [round(x, 4) for x in (-dpo_davidson(pairs)).exp().tolist()]  # win, tie (and loss) at equal rewards
        [0.25, 0.5]

    Reference:
        arXiv 2409.17431. From the abstract and secondary descriptions; the probabilities are derived from the
        Davidson model and checked to sum to 1.

    Departures:
        None.

    Relations:
        `dpo` as nu goes to 0, where no pair is a tie.
    """
    u = beta * pairs.margins
    log_2nu = math.log(2 * nu)
    win = torch.logaddexp(-F.logsigmoid(u), log_2nu - u / 2)
    tie = win + u / 2 - log_2nu
    return torch.where(pairs.required("ties"), tie, win)
