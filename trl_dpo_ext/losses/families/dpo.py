"""DPO, and its variants that are logistic in the difference of the two log-ratios."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ...types import PreferencePairs
from ..loss_registry import register_loss


@register_loss("dpo", paper="2305.18290", aliases=["sigmoid"], f_divergence=True)
def dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Direct Preference Optimization: logistic regression on the implicit reward margin.

    Equation:
        -log sigmoid(beta * (D_w - D_l)), with D_w = `pairs.chosen_log_ratios`, D_l = `pairs.rejected_log_ratios`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty; a larger beta keeps the policy closer to the reference.

    Returns:
        [N] loss, nats. log 2 where D_w = D_l.

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
        `plackett_luce` at K = 2, to the last bit of float32.
    """
    return -F.logsigmoid(beta * pairs.margins)


@register_loss("cdpo", paper="cDPO note (E. Mitchell)", f_divergence=True)
def cdpo(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.1,
) -> Tensor:
    """Conservative DPO: assumes that a share of the labels is flipped.

    Equation:
        -(1 - e) log sigmoid(u) - e log sigmoid(-u), with u = beta * `pairs.margins` and e = `label_smoothing`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        label_smoothing: assumed probability that a label is flipped.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree. Lowest where sigmoid(u) = 1 - e, so the
        margin stays finite.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(10 * one, zero, zero, zero, one, one)
        >>> round(cdpo(pairs, beta=1.0, label_smoothing=0.1).item(), 4)  # about 0.1 * 10
        1.0

    Reference:
        E. Mitchell's note on cDPO, Eq. 3; equal to the loss in the DPO authors' own code.

    Departures:
        None. TRL's `sigmoid` ignores its `label_smoothing`, so this loss has a name of its own.

    Relations:
        `dpo` at label_smoothing = 0.
    """
    u = beta * pairs.margins
    return -(1 - label_smoothing) * F.logsigmoid(u) - label_smoothing * F.logsigmoid(-u)


@register_loss("robust", paper="2403.00409", aliases=["rdpo"], f_divergence=True)
def robust(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0,
) -> Tensor:
    """Robust DPO: an estimate of the DPO loss under the true labels that is unbiased under random label flips.

    Equation:
        (-(1 - e) log sigmoid(u) + e log sigmoid(-u)) / (1 - 2 e), with u = beta * `pairs.margins` and
        e = `label_smoothing`.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        label_smoothing: probability that a label is flipped.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree. Negative for clearly separated pairs.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(10 * one, zero, zero, zero, one, one)
        >>> round(robust(pairs, beta=1.0, label_smoothing=0.1).item(), 4)  # about -0.1 * 10 / 0.8
        -1.25

    Reference:
        arXiv 2403.00409 (rDPO).

    Departures:
        None. The default of label_smoothing is TRL's, at which this is `dpo`. Set it to the share of flipped labels;
        0.1 is a usual value.

    Relations:
        `dpo` at label_smoothing = 0.
    """
    u = beta * pairs.margins
    return (-(1 - label_smoothing) * F.logsigmoid(u) + label_smoothing * F.logsigmoid(-u)) / (1 - 2 * label_smoothing)


@register_loss("ln_dpo", paper="2411.15124", aliases=["sigmoid_norm"], f_divergence=True, length_normalized=True)
def ln_dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """Length-normalised DPO: uses the log-ratio per token of each response.

    Equation:
        -log sigmoid(beta * (D_w / |w| - D_l / |l|)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios` and the lengths |w|, |l| in tokens.

    Args:
        pairs: N pairs, [N] float log-probs in nats and lengths in tokens, with a reference.
        beta: strength of the KL penalty, per token; typically DPO's beta times the length of a response.

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> pairs = PreferencePairs(torch.tensor([-4.0]), torch.tensor([-2.0]), torch.tensor([-8.0]),
        ...                         torch.tensor([-4.0]), torch.tensor([4]), torch.tensor([2]))  # both +1 a token
        >>> round(ln_dpo(pairs).item(), 4)
        0.6931

    Reference:
        arXiv 2411.15124 (Tulu 3); compared with SimPO in arXiv 2405.14734, appendix.

    Departures:
        None. An empty response counts as one token.

    Relations:
        `dpo` where every response has one token.
    """
    chosen = pairs.chosen_log_ratios / pairs.chosen_lengths.clamp(min=1)
    rejected = pairs.rejected_log_ratios / pairs.rejected_lengths.clamp(min=1)
    return -F.logsigmoid(beta * (chosen - rejected))


@register_loss("r_dpo", paper="2403.19159", f_divergence=True)
def r_dpo(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, alpha: Annotated[float, Ge(0)] = 0.01
) -> Tensor:
    """Length-regularised DPO: a longer chosen response needs a smaller margin.

    Equation:
        -log sigmoid(beta * (D_w - D_l) + alpha * (|w| - |l|)), with D_w = `pairs.chosen_log_ratios`,
        D_l = `pairs.rejected_log_ratios` and the lengths |w|, |l| in tokens.

    Args:
        pairs: N pairs, [N] float log-probs in nats and lengths in tokens, with a reference.
        beta: strength of the KL penalty.
        alpha: cost of a token in units of reward.

    Returns:
        [N] loss, nats.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, lengths = torch.zeros(1), torch.tensor([100])
        >>> longer = PreferencePairs(zero, zero, zero, zero, lengths, lengths - 100)  # already a margin of 0.01 * 100
        >>> round(r_dpo(longer).item(), 4)
        0.3133

    Reference:
        arXiv 2403.19159. The paper's text was not available. The term is derived from its objective (reward minus
        alpha times the length, under the KL penalty), which fixes the sign; secondary descriptions agree.

    Departures:
        None. Some repositories have the length term with the opposite sign, which rewards length.

    Relations:
        `dpo` at alpha = 0.
        `dpo` where both responses have the same length.
    """
    extra_tokens = (pairs.chosen_lengths - pairs.rejected_lengths).to(pairs.margins.dtype)
    return -F.logsigmoid(beta * pairs.margins + alpha * extra_tokens)


@register_loss("odpo", paper="2402.10571", f_divergence=True, needs=["scores"])
def odpo(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, alpha: Annotated[float, Ge(0)] = 1.0
) -> Tensor:
    """DPO with an offset: the larger the score gap, the larger the required margin.

    Equation:
        -log sigmoid(u - alpha * log(r_w - r_l)), with u = beta * `pairs.margins` and r_w - r_l =
        `pairs.score_margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and scores, with a reference; each chosen score above the rejected.
        beta: strength of the KL penalty.
        alpha: weight of the offset.

    Returns:
        [N] loss, nats.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no scores.
        ValueError: a chosen score that isn't above the rejected one: the logarithm of the gap doesn't exist.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(zero, zero, zero, zero, one, one, chosen_scores=3 * one, rejected_scores=one)
        >>> round(odpo(pairs).exp().item(), 4)  # sigmoid(-log 2) = 1/3
        3.0

    Reference:
        arXiv 2402.10571; the authors' code has the same expression.

    Departures:
        None.

    Relations:
        `dpo` at alpha = 0.
        `dpo` where the scores differ by 1.
    """
    gaps = pairs.score_margins
    if not (gaps > 0).all():
        index = int((~(gaps > 0)).nonzero()[0])
        raise ValueError(
            f"odpo: pair {index} has a chosen score minus rejected score of {gaps[index].item():g}; every chosen score "
            "must be above the rejected one. Drop such pairs, or use a loss that doesn't read scores."
        )
    return -F.logsigmoid(beta * pairs.margins - alpha * gaps.log())
