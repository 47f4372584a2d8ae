"""Losses on the difference of the two log-ratios with a function other than the logistic."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor

from ...types import PreferencePairs
from ..kinks import clip, positive_part
from ..loss_registry import register_loss

# Log-ratios are capped here before exp: exp(80) = 5.5e34 fits float32 and bfloat16, with room for a factor.
_MAX_LOG_RATIO = 80.0


@register_loss("hinge", paper="2309.06657", f_divergence=True)
def hinge(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Hinge loss on the implicit reward margin, as in RSO: pairs past the margin give no gradient.

    Equation:
        max(0, 1 - beta * (D_w - D_l)), with D_w - D_l = `pairs.margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty; 1 / beta is the required margin, in nats.

    Returns:
        [N] loss; 1 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> hinge(PreferencePairs(4 * one, zero, zero, zero, one, one), beta=0.125).item()
        0.5

    Reference:
        arXiv 2309.06657 (RSO), where it is the hinge-norm loss.

    Departures:
        None.

    Relations:
        `slic` at delta = 1, lam = 0, for beta = 1 and a reference that gives every response the same probability.
    """
    return positive_part(1 - beta * pairs.margins, slope_at_zero=0)


@register_loss("ipo", paper="2310.12036", f_divergence=True, length_normalized=True, trl_fields={"beta": "tau"})
def ipo(pairs: PreferencePairs, *, tau: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Identity Preference Optimization: regression of the margin on a finite target.

    Equation:
        (D_w / |w| - D_l / |l| - 1 / (2 tau))^2, with D_w = `pairs.chosen_log_ratios`, D_l =
        `pairs.rejected_log_ratios` and the lengths |w|, |l| in tokens.

    Args:
        pairs: N pairs, [N] float log-probs in nats and lengths in tokens, with a reference.
        tau: strength of the regularisation; the target margin is 1 / (2 tau) nats a token.

    Returns:
        [N] loss, squared nats; 1 / (2 tau)^2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, lengths = torch.zeros(1), torch.tensor([2])
        >>> ipo(PreferencePairs(zero + 2, zero, zero, zero, lengths, lengths), tau=0.25).item()  # (1 - 2)^2
        1.0

    Reference:
        arXiv 2310.12036, Eq. 17.

    Departures:
        The paper doesn't mention length. The log-ratios are averaged over tokens, as in TRL, whose authors confirmed
        this with the paper's authors. An empty response counts as one token.

    Relations:
        `sppo_hard` minus its constant 1 / (2 beta)^2 at beta = tau, where D_l = 0 and responses have one token.
    """
    chosen = pairs.chosen_log_ratios / pairs.chosen_lengths.clamp(min=1)
    rejected = pairs.rejected_log_ratios / pairs.rejected_lengths.clamp(min=1)
    return (chosen - rejected - 1 / (2 * tau)) ** 2


@register_loss("exo_pair", paper="2402.00856", f_divergence=True)
def exo_pair(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Gt(0), Lt(0.5)] = 1e-3,
) -> Tensor:
    """Efficient Exact Optimization on pairs: reverse KL between the policy's preference and the smoothed label.

    Equation:
        p log(p / (1 - e)) + (1 - p) log((1 - p) / e), with p = sigmoid(beta * `pairs.margins`) and
        e = `label_smoothing`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        label_smoothing: probability that the smoothed label gives the rejected response; the loss is infinite at 0.

    Returns:
        [N] loss, nats; 0 where p = 1 - e.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(torch.tensor([3.0]).log(), zero, zero, zero, one, one)  # p = 3/4
        >>> abs(round(exo_pair(pairs, beta=1.0, label_smoothing=0.25).item(), 4))
        0.0

    Reference:
        arXiv 2402.00856, Eq. 16. The authors' code puts log e at -10, with 0 in place of log(1 - e).

    Departures:
        None. TRL's default of label_smoothing is 0, at which the loss is infinite and which TRL refuses; here it is the
        paper's value.

    Relations:
        `exo` at K = 2, with scores whose softmax is (1 - label_smoothing, label_smoothing).
    """
    u = beta * pairs.margins
    chosen = torch.sigmoid(u) * (F.logsigmoid(u) - math.log1p(-label_smoothing))
    rejected = torch.sigmoid(-u) * (F.logsigmoid(-u) - math.log(label_smoothing))
    return chosen + rejected


@register_loss("discopop", paper="2406.08414", f_divergence=True, trl_fields={"discopop_tau": "tau"})
def discopop(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, tau: Annotated[float, Gt(0)] = 0.05
) -> Tensor:
    """DiscoPOP: a blend of the logistic and the exponential loss, found by a language model.

    Equation:
        -(1 - g) log sigmoid(u) + g exp(-u), with u = beta * `pairs.margins` and g = sigmoid(u / tau).

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        tau: temperature of the blend; a small tau switches from the logistic to the exponential loss at u = 0.

    Returns:
        [N] loss; (log 2 + 1) / 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> round(discopop(PreferencePairs(zero, zero, zero, zero, one, one)).item(), 4)
        0.8466

    Reference:
        arXiv 2406.08414, Eq. 5 (log-ratio modulated loss).

    Departures:
        None in value. g exp(-u) is computed as one exponential, which doesn't overflow for tau <= 1. The default
        of beta is TRL's. The paper's value is 0.05.

    Relations:
        `dpo` where u is below zero by many tau.
    """
    u = beta * pairs.margins
    logistic = -torch.sigmoid(-u / tau) * F.logsigmoid(u)
    return logistic + torch.exp(F.logsigmoid(u / tau) - u)


@register_loss("chi_po", paper="2407.13399")
def chi_po(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, r_max: Annotated[float, Gt(0)] = 10.0
) -> Tensor:
    """Chi-squared Preference Optimization: DPO with a link that penalises leaving the reference more strongly.

    Equation:
        -log sigmoid(clip(beta * (phi(D_w) - phi(D_l)), -2 r_max, 2 r_max)), phi(D) = exp(D) + D, with
        D_w = `pairs.chosen_log_ratios`, D_l = `pairs.rejected_log_ratios`. In terms of the ratio z = exp(D), phi is
        z + log z.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the regularisation.
        r_max: bound on the reward; margins are clipped at twice this value, and pairs beyond have no gradient.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(one, zero, zero, zero, one, one)  # phi(1) - phi(0) = e
        >>> round(chi_po(pairs, beta=1.0).item(), 4) == round(math.log1p(math.exp(-math.e)), 4)
        True

    Reference:
        arXiv 2407.13399 (Algorithm 1), from secondary sources; the paper's text was not available.

    Departures:
        The default of r_max is ours: the paper takes it from the range of the true reward. exp(D) is capped at
        exp(80), far outside the clip for any practical beta.

    Relations:
        `dpo` with twice the beta, in the gradient where policy and reference agree.
    """
    chosen, rejected = pairs.chosen_log_ratios, pairs.rejected_log_ratios
    ratios = clip(chosen, high=_MAX_LOG_RATIO).exp() - clip(rejected, high=_MAX_LOG_RATIO).exp()
    return -F.logsigmoid(clip(beta * (ratios + chosen - rejected), low=-2 * r_max, high=2 * r_max))
