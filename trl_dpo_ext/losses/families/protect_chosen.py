"""Losses that protect the chosen response: they keep it from losing probability along with the rejected one.

`minor_dpo` does so too; it has a file of its own.
"""

import math
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ...types import PreferencePairs
from ..kinks import positive_part, smaller
from ..loss_registry import register_loss


@register_loss("bounded_dpo", paper="2506.12725", aliases=["bdpo"], counters_displacement=True)
def bounded_dpo(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, lam: Annotated[float, Gt(0), Lt(1)] = 0.5
) -> Tensor:
    """Bounded DPO: a mixture of policy and reference, which can't vanish, scores the rejected response.

    Equation:
        -log sigmoid(beta * D_w - beta * log(lam * exp(D_l) + 1 - lam)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        lam: share of the policy in the mixture; the rejected term stays above log(1 - lam).

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(zero, -1000 * one, zero, zero, one, one)  # the rejected response has vanished
        >>> round(bounded_dpo(pairs, beta=1.0, lam=0.5).exp().item(), 4)  # 1 / sigmoid(log 2)
        1.5

    Reference:
        arXiv 2506.12725. The mixture is the paper's; the loss is derived from it and checked numerically.

    Departures:
        None.

    Relations:
        `dpo` as lam goes to 1.
    """
    # log(lam e^D + 1 - lam) = log(1 - lam) + log(1 + e^(D + log(lam / (1 - lam))))
    odds = math.log(lam) - math.log1p(-lam)
    mixture = math.log1p(-lam) - F.logsigmoid(-(pairs.rejected_log_ratios + odds))
    return -F.logsigmoid(beta * (pairs.chosen_log_ratios - mixture))


@register_loss("dpop", paper="2402.13228", counters_displacement=True)
def dpop(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, lam: Annotated[float, Ge(0)] = 50.0) -> Tensor:
    """DPO-Positive: a penalty inside the sigmoid for a chosen response that is less likely than under the reference.

    Equation:
        -log sigmoid(beta * (D_w - D_l - lam * max(0, -D_w))), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        lam: weight of the penalty.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(-one, -51 * one, zero, zero, one, one)  # 50 ahead, but 1 below the reference
        >>> round(dpop(pairs).item(), 4)
        0.6931

    Reference:
        arXiv 2402.13228, Eq. 3, from secondary sources (the authors' repository has no loss code).

    Departures:
        None in value. Some repositories put the penalty outside the sigmoid. At D_w = 0 (the first step,
        where policy and reference agree) the penalty has no derivative. Here it is 0, so that the first step is a plain
        DPO step.

    Relations:
        `dpo` at lam = 0.
        `dpo` where D_w >= 0.
    """
    penalty = positive_part(-pairs.chosen_log_ratios, slope_at_zero=0)
    return -F.logsigmoid(beta * (pairs.margins - lam * penalty))


@register_loss("dpo_shift", paper="2502.07599", counters_displacement=True)
def dpo_shift(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, lam: Annotated[float, Gt(0), Le(1)] = 0.7
) -> Tensor:
    """DPO-Shift: the rejected reward counts less than the chosen one.

    Equation:
        -log sigmoid(beta * (D_w - lam * D_l)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        lam: weight of the rejected reward; the paper uses values from 0.5 to 1.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(-one, -2 * one, zero, zero, one, one)  # -1 + 0.5 * 2 = 0
        >>> round(dpo_shift(pairs, lam=0.5).item(), 4)
        0.6931

    Reference:
        arXiv 2502.07599, with its f(lambda) as a constant.

    Departures:
        The paper also has schedules of lam over training; here it is constant.

    Relations:
        `dpo` at lam = 1.
    """
    return -F.logsigmoid(beta * (pairs.chosen_log_ratios - lam * pairs.rejected_log_ratios))


@register_loss("balanced_po", paper="2506.03557", counters_displacement=True)
def balanced_po(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, alpha: Annotated[float, Gt(0), Le(1)] = 0.3
) -> Tensor:
    """Balanced Preference Optimization: trains only the lagging one of the two rewards.

    Equation:
        -log sigmoid(beta * min(D_w, -alpha * D_l)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        alpha: gap adaptor; a smaller alpha lets the rejected response fall further before the chosen one is trained.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree. Where both arguments of min
        are equal, each gets half of the gradient.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(zero, -9 * one, zero, zero, one, one)  # the chosen response hasn't moved
        >>> round(balanced_po(pairs).item(), 4)
        0.6931

    Reference:
        arXiv 2506.03557, as given by secondary sources; the paper's text was not at hand.

    Departures:
        None. The paper allows other functions than the logistic one.

    Relations:
        `dpo` with half the beta at alpha = 1, where D_l = -D_w.
    """
    return -F.logsigmoid(beta * smaller(pairs.chosen_log_ratios, -alpha * pairs.rejected_log_ratios))


@register_loss("cal_dpo", paper="2412.14516", counters_displacement=True)
def cal_dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.002) -> Tensor:
    """Calibrated DPO: the logistic loss plus a regression of each log-ratio on a target reward.

    Equation:
        -log sigmoid(D_w - D_l) + ((D_w - 1 / (2 beta))^2 + (D_l + 1 / (2 beta))^2) / 2, with
        D_w = `pairs.chosen_log_ratios`, D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty; the log-ratios' targets are 1 / (2 beta) and -1 / (2 beta).

    Returns:
        [N] loss; log 2 + 1 / (2 beta)^2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> round(cal_dpo(PreferencePairs(zero, zero, zero, zero, one, one), beta=0.5).item(), 4)
        1.6931

    Reference:
        arXiv 2412.14516; the first term has no beta, there and in the authors' code.

    Departures:
        None.

    Relations:
        `dpo` at beta = 1, plus half of `sppo_hard`.
    """
    target = 1 / (2 * beta)
    calibration = (pairs.chosen_log_ratios - target) ** 2 + (pairs.rejected_log_ratios + target) ** 2
    return -F.logsigmoid(pairs.margins) + calibration / 2
