"""Losses with a separate term for each response's own reward."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ...types import PreferencePairs
from ..loss_registry import register_loss


@register_loss("nca_pair", paper="2402.05369")
def nca_pair(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Noise Contrastive Alignment on pairs: classify each response as chosen or as drawn from the reference.

    Equation:
        -log sigmoid(beta * D_w) - log sigmoid(-beta * D_w) / 2 - log sigmoid(-beta * D_l) / 2, with
        D_w = `pairs.chosen_log_ratios`, D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.

    Returns:
        [N] loss, nats; 2 log 2 where policy and reference agree. Lowest where sigmoid(beta * D_w) = 2/3.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> round(nca_pair(PreferencePairs(zero, zero, zero, zero, one, one)).exp().item(), 4)
        4.0

    Reference:
        arXiv 2402.05369; the authors' code has the same expression.

    Departures:
        The default of beta is TRL's. The paper's value is 0.01.

    Relations:
        `nca` at K = 2, where the scores put all weight on the chosen response.
    """
    chosen, rejected = beta * pairs.chosen_log_ratios, beta * pairs.rejected_log_ratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@register_loss("bco_pair", paper="2404.04656")
def bco_pair(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Binary Classifier Optimization on pairs, without the reward shift: TRL's `bco_pair`.

    Equation:
        -log sigmoid(beta * D_w) - log sigmoid(-beta * D_l), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.

    Returns:
        [N] loss, nats; 2 log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> round(bco_pair(PreferencePairs(zero, zero, zero, zero, one, one)).exp().item(), 4)
        4.0

    Reference:
        arXiv 2404.04656.

    Departures:
        The paper shifts the rewards by their running mean. TRL 1.16 doesn't, and neither does this loss; `bco` does.
        The default of beta is TRL's. The paper's value is 0.01.

    Relations:
        `bco` where the running mean of the rewards is 0.
        `dpo` is never above it.
    """
    return -F.logsigmoid(beta * pairs.chosen_log_ratios) - F.logsigmoid(-beta * pairs.rejected_log_ratios)


def _mean_rewards(pairs: PreferencePairs, *, beta: float) -> Tensor:
    """[N] mean reward of the two responses of a pair."""
    return beta * (pairs.chosen_log_ratios + pairs.rejected_log_ratios) / 2


@register_loss("bco", paper="2404.04656", statistic=_mean_rewards)
def bco(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.01) -> Tensor:
    """Binary Classifier Optimization: classify each response as chosen or rejected, against the mean reward so far.

    Equation:
        -log sigmoid(beta * D_w - d) - log sigmoid(d - beta * D_l), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios` and d = `pairs.running_mean` of the rewards.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference and the running mean of the rewards.
        beta: strength of the KL penalty.

    Returns:
        [N] loss, nats; 2 log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no running mean.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(one, one, zero, zero, one, one, running_mean=torch.tensor(1.0))
        >>> round(bco(pairs, beta=1.0).exp().item(), 4)
        4.0

    Reference:
        arXiv 2404.04656; the shift is the one its authors contributed to TRL (a mean over all rewards seen).

    Departures:
        The paper's density-ratio weights, for chosen and rejected responses to different prompts, are left out: pairs
        share their prompt. The mean weights every optimizer step equally.

    Relations:
        `bco_pair` where the running mean of the rewards is 0.
    """
    shift = pairs.required("running_mean").detach()
    return -F.logsigmoid(beta * pairs.chosen_log_ratios - shift) - F.logsigmoid(
        shift - beta * pairs.rejected_log_ratios
    )


@register_loss("sppo_hard", paper="2405.00675")
def sppo_hard(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Self-Play Preference Optimization with hard labels: regress each log-ratio on a win probability of 1 or 0.

    Equation:
        (D_w - 1 / (2 beta))^2 + (D_l + 1 / (2 beta))^2, with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty (1 / eta in the paper).

    Returns:
        [N] loss, squared nats; 1 / (2 beta^2) where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> sppo_hard(PreferencePairs(3 * one, -one, zero, zero, one, one), beta=0.5).item()  # (3 - 1)^2 + (-1 + 1)^2
        4.0

    Reference:
        arXiv 2405.00675, Eq. 4.7 with win probabilities 1 and 0.

    Departures:
        None in the formula. The authors' code halves it; this one, like TRL, doesn't. The default of beta is TRL's. The
        paper's value is 0.001 (eta = 1000), which asks for log-ratios a hundred times as large.

    Relations:
        `cal_dpo` minus `dpo` at beta = 1, times two.
    """
    target = 1 / (2 * beta)
    return (pairs.chosen_log_ratios - target) ** 2 + (pairs.rejected_log_ratios + target) ** 2


@register_loss("apo_zero", paper="2408.06266")
def apo_zero(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Anchored Preference Optimization, zero: raises chosen and lowers rejected, for data better than the policy.

    Equation:
        1 - sigmoid(beta * D_w) + sigmoid(beta * D_l), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.

    Returns:
        [N] loss, from 0 to 2; 1 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> apo_zero(PreferencePairs(zero, zero, zero, zero, one, one)).item()
        1.0

    Reference:
        arXiv 2408.06266, Eq. 7.

    Departures:
        None.

    Relations:
        `apo_zero` of the pair the other way round adds up with it to 2.
    """
    return torch.sigmoid(-beta * pairs.chosen_log_ratios) + torch.sigmoid(beta * pairs.rejected_log_ratios)


@register_loss("apo_down", paper="2408.06266")
def apo_down(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Anchored Preference Optimization, down: lowers both, rejected more, for data worse than the policy.

    Equation:
        sigmoid(beta * D_w) + 1 - sigmoid(beta * (D_w - D_l)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.

    Returns:
        [N] loss, from 0 to 2; 1 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> apo_down(PreferencePairs(zero, zero, zero, zero, one, one)).item()
        1.0

    Reference:
        arXiv 2408.06266, Eq. 8.

    Departures:
        None.

    Relations:
        `apo_zero` where D_w = 0.
    """
    return torch.sigmoid(beta * pairs.chosen_log_ratios) + torch.sigmoid(-beta * pairs.margins)
