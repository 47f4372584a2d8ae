"""Losses in which the pairs of a batch depend on each other."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ...types import MissingReferenceError, PreferencePairs
from ..loss_registry import register_loss


def _of_same_rank(values: Tensor, others: Tensor) -> Tensor:
    """[N] for each of `values`, the element of `others` with the same rank when both are sorted."""
    # Stable, so that equal values are matched in the batch's order on every device and version.
    return others.sort(stable=True).values[values.argsort(stable=True).argsort()]


def _smoothed_logistic(u: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(u) - label_smoothing * F.logsigmoid(-u)


@register_loss("aot", paper="2406.05882", couples_batch=True)
def aot(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0,
) -> Tensor:
    """Alignment via Optimal Transport on pairs: compare the batch's margins as distributions, in sorted order.

    Equation:
        -(1 - e) log sigmoid(beta * d_i) - e log sigmoid(-beta * d_i), with e = `label_smoothing` and
        d_i = log pi(y_w|x) - log pi(y_l|x) of pair i, minus the reference's difference with the same rank when
        both are sorted over the batch.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        label_smoothing: assumed probability that a label is flipped.

    Returns:
        [N] loss, nats.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, zero, lengths = torch.tensor([1.0, 5.0]), torch.zeros(2), torch.ones(2)
        >>> pairs = PreferencePairs(logps, zero, logps.flip(0), zero, lengths, lengths)  # the same two margins
        >>> [round(x, 4) for x in aot(pairs).tolist()]
        [0.6931, 0.6931]

    Reference:
        arXiv 2406.05882 (paired).

    Departures:
        The trainer gives it all pairs of the optimizer step to sort; TRL sorts each micro-batch of each process. The
        default of beta is TRL's. The value used with this loss in practice is 0.01.

    Relations:
        `dpo` for a batch of one pair.
        `cdpo` for a batch of one pair, with the same label_smoothing.
    """
    if pairs.ref_chosen_logps is None or pairs.ref_rejected_logps is None:
        raise MissingReferenceError("aot sorts the reference's log-prob differences, but there is no reference.")
    policy = pairs.chosen_logps - pairs.rejected_logps
    reference = pairs.ref_chosen_logps - pairs.ref_rejected_logps
    return _smoothed_logistic(beta * (policy - _of_same_rank(policy, reference)), label_smoothing)


@register_loss("aot_unpaired", paper="2406.05882", couples_batch=True)
def aot_unpaired(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0,
) -> Tensor:
    """Alignment via Optimal Transport without pairs: chosen log-ratios against rejected ones, both sorted.

    Equation:
        -(1 - e) log sigmoid(beta * d_i) - e log sigmoid(-beta * d_i), with e = `label_smoothing` and d_i the i-th of
        `pairs.chosen_log_ratios`, minus the element of `pairs.rejected_log_ratios` with the same rank when both are
        sorted over the batch.

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference.
        beta: strength of the KL penalty.
        label_smoothing: assumed probability that a label is flipped.

    Returns:
        [N] loss, nats.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, zero, lengths = torch.tensor([1.0, 5.0]), torch.zeros(2), torch.ones(2)
        >>> pairs = PreferencePairs(logps, logps.flip(0), zero, zero, lengths, lengths)  # the same two log-ratios
        >>> [round(x, 4) for x in aot_unpaired(pairs).tolist()]
        [0.6931, 0.6931]

    Reference:
        arXiv 2406.05882 (unpaired).

    Departures:
        The trainer gives it all pairs of the optimizer step to sort; TRL sorts each micro-batch of each process. The
        default of beta is TRL's. The value used with this loss in practice is 0.01.

    Relations:
        `dpo` for a batch of one pair.
        `cdpo` for a batch of one pair, with the same label_smoothing.
    """
    chosen = pairs.chosen_log_ratios
    return _smoothed_logistic(beta * (chosen - _of_same_rank(chosen, pairs.rejected_log_ratios)), label_smoothing)


def _margins(pairs: PreferencePairs, *, beta: float, alpha: float) -> Tensor:
    """[N] margin of the log-ratios."""
    return pairs.margins


@register_loss("beta_dpo", paper="2407.08639", f_divergence=True, couples_batch=True, statistic=_margins, momentum=0.9)
def beta_dpo(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, alpha: Annotated[float, Ge(0)] = 0.6
) -> Tensor:
    """DPO with a dynamic beta: larger for batches whose margins are above the running average.

    Equation:
        -log sigmoid(b * (D_w - D_l)), b = max(0.001, beta * (1 + alpha * (mean(D_w - D_l) - M))) without gradient, with
        D_w - D_l = `pairs.margins`, their mean over the batch = `pairs.batch_mean` and its moving average
        M = `pairs.running_mean` (momentum 0.9).

    Args:
        pairs: N pairs, [N] float log-probs in nats, with a reference, the batch's mean margin and its moving average.
        beta: strength of the KL penalty for a batch at the average.
        alpha: how strongly beta follows the margin (a in the paper).

    Returns:
        [N] loss, nats; log 2 where policy and reference agree.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no batch mean or running mean.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(one, zero, zero, zero, one, one, batch_mean=torch.tensor(1.0),
        ...                         running_mean=torch.tensor(0.0))
        >>> round(beta_dpo(pairs, beta=1.0, alpha=0.5).item(), 4)  # beta becomes 1.5
        0.2014

    Reference:
        arXiv 2407.08639; order of update and use, momentum and lower bound as in the authors' code.

    Departures:
        The paper also samples a share of the batch by how close each margin is to the average. Sampling isn't a
        function of the batch, so it is left out: every pair counts. The batch is the optimizer step.

    Relations:
        `dpo` at alpha = 0.
        `dpo` where the batch's mean margin equals the running mean.
    """
    lead = (pairs.required("batch_mean") - pairs.required("running_mean")).detach()
    return -F.logsigmoid((beta * (1 + alpha * lead)).clamp(min=1e-3) * pairs.margins)
