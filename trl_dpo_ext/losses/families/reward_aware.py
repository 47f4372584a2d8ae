"""Losses whose margin should equal the difference of the data's scores, not only have its sign."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ...types import PreferencePairs
from ..loss_registry import register_loss


def _bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(sigmoid(first) || sigmoid(second)) of two logits of the same shape, nats."""
    better = first.sigmoid() * (F.logsigmoid(first) - F.logsigmoid(second))
    worse = (-first).sigmoid() * (F.logsigmoid(-first) - F.logsigmoid(-second))
    return better + worse


@register_loss("rebel", paper="2404.16767", f_divergence=True, needs=["scores"])
def rebel(pairs: PreferencePairs, *, eta: Annotated[float, Gt(0)] = 1.0) -> Tensor:
    """REBEL: regression of the margin on the difference of the scores.

    Equation:
        (D_w - D_l - eta * (r_w - r_l))^2, with D_w - D_l = `pairs.margins` and the scores r, r_w - r_l =
        `pairs.score_margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and scores, with a reference.
        eta: nats of margin per unit of score: 1 / beta in DPO's terms.

    Returns:
        [N] loss, squared nats; 0 where the margin is eta times the score difference.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(4 * one, zero, zero, zero, one, one, chosen_scores=3 * one, rejected_scores=one)
        >>> rebel(pairs, eta=0.5).item()  # (4 - 0.5 * 2)^2
        9.0

    Reference:
        arXiv 2404.16767, checked against the authors' code (`reg_diff` in src/ultrafeedback/rebel.py), whose eta is 1;
        only the paper's abstract could be read here.

    Departures:
        The paper's algorithm collects new pairs in rounds, and its reference is the policy of the last round. Here the
        data and the reference are those of the run. Where the residual is written as (D_w - D_l) / eta - (r_w - r_l),
        value and gradient are those of this loss divided by eta^2.

    Relations:
        `reward_aware_po_squared` at beta = 1.
    """
    return (pairs.margins - eta * pairs.score_margins) ** 2


@register_loss("reward_aware_po", paper="2502.00203", f_divergence=True, needs=["scores"], aliases=["rpo_bwd_kl"])
def reward_aware_po(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.2, eta: Annotated[float, Ge(0)] = 1.0
) -> Tensor:
    """Reward-aware preference optimization: KL from the scores' preference to the policy's, as for Nemotron-4.

    Equation:
        q log(q / p) + (1 - q) log((1 - q) / (1 - p)), with p = sigmoid(beta * (D_w - D_l)), D_w - D_l =
        `pairs.margins`, and q = sigmoid(eta * (r_w - r_l)), r_w - r_l = `pairs.score_margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and scores, with a reference.
        beta: strength of the KL penalty.
        eta: scale of the scores.

    Returns:
        [N] loss, nats; 0 where beta times the margin is eta times the score difference.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(zero, zero, zero, zero, one, one, chosen_scores=100 * one, rejected_scores=zero)
        >>> round(reward_aware_po(pairs).item(), 4)  # q = 1: DPO's loss
        0.6931

    Reference:
        arXiv 2502.00203 (RPO-bwd) and 2406.11704 (Nemotron-4), checked against the authors' code in NeMo-Aligner
        (`rpo_bwd_kl`), whose configuration has the defaults beta = 0.2 and eta = 1.

    Departures:
        None.

    Relations:
        `dpo` where the scores are far apart.
        The gradient of `cdpo` with label_smoothing = sigmoid(-eta (r_w - r_l)), where all pairs are equally far apart.
    """
    return _bernoulli_kl(eta * pairs.score_margins, beta * pairs.margins)


@register_loss(
    "reward_aware_po_forward_kl", paper="2502.00203", f_divergence=True, needs=["scores"], aliases=["rpo_fwd_kl"]
)
def reward_aware_po_forward_kl(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.2, eta: Annotated[float, Gt(0)] = 1.0
) -> Tensor:
    """Reward-aware preference optimization with the other direction: KL from the policy's preference to the scores'.

    Equation:
        p log(p / q) + (1 - p) log((1 - p) / (1 - q)), with p and q as in `reward_aware_po`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and scores, with a reference.
        beta: strength of the KL penalty.
        eta: scale of the scores.

    Returns:
        [N] loss, nats; 0 where beta times the margin is eta times the score difference.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(10 * one, zero, zero, zero, one, one, chosen_scores=2 * one, rejected_scores=zero)
        >>> reward_aware_po_forward_kl(pairs, beta=0.2, eta=1.0).item()
        0.0

    Reference:
        arXiv 2502.00203 (RPO-fwd), checked against the authors' code in NeMo-Aligner (`rpo_fwd_kl`), whose
        configuration has the defaults beta = 0.2 and eta = 1.

    Departures:
        None.

    Relations:
        `exo_pair` with label_smoothing = sigmoid(-eta (r_w - r_l)), where all pairs are equally far apart.
    """
    return _bernoulli_kl(beta * pairs.margins, eta * pairs.score_margins)


@register_loss("reward_aware_po_squared", paper="2502.00203", f_divergence=True, needs=["scores"], aliases=["rpo_sq"])
def reward_aware_po_squared(
    pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.2, eta: Annotated[float, Gt(0)] = 1.0
) -> Tensor:
    """Reward-aware preference optimization with the squared distance of the two margins.

    Equation:
        (beta * (D_w - D_l) - eta * (r_w - r_l))^2, with D_w - D_l = `pairs.margins` and r_w - r_l =
        `pairs.score_margins`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and scores, with a reference.
        beta: strength of the KL penalty.
        eta: scale of the scores.

    Returns:
        [N] loss; 0 where beta times the margin is eta times the score difference.

    Raises:
        MissingReferenceError: the pairs hold no reference log-probs.
        MissingInputError: the pairs hold no scores.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> pairs = PreferencePairs(8 * one, zero, zero, zero, one, one, chosen_scores=3 * one, rejected_scores=zero)
        >>> reward_aware_po_squared(pairs, beta=0.5, eta=1.0).item()  # (4 - 3)^2
        1.0

    Reference:
        arXiv 2502.00203 (RPO-sqloss), checked against the authors' code in NeMo-Aligner (`rpo_sq`), whose
        configuration has the defaults beta = 0.2 and eta = 1.

    Departures:
        None.

    Relations:
        `rebel` at beta = 1.
    """
    return (beta * pairs.margins - eta * pairs.score_margins) ** 2
