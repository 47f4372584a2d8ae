"""Pairwise losses without a reference: no reference model is loaded and no reference forward runs."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ...types import PreferencePairs
from ..kinks import clip, positive_part
from ..loss_registry import register_loss

# The exponent is capped here: exp(80) = 5.5e34 fits float32 and bfloat16.
_MAX_EXPONENT = 80.0


@register_loss("reference_free_dpo", paper="2305.18290", reference_free=True)
def reference_free_dpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1) -> Tensor:
    """DPO against a uniform reference: the logistic loss on the difference of the summed log-probs.

    Equation:
        -log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))), with `pairs.chosen_logps` and `pairs.rejected_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats; the reference's are not read.
        beta: scale of the log-prob difference.

    Returns:
        [N] loss, nats; log 2 where both responses are equally likely.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, lengths = torch.tensor([-3.0]), torch.tensor([2])
        >>> round(reference_free_dpo(PreferencePairs(logps, logps, None, None, lengths, lengths)).item(), 4)
        0.6931

    Reference:
        The `reference_free` option of the DPO authors' own code; arXiv 2305.18290 for the loss it reduces.

    Departures:
        Their option zeroes the reference inside the loss but still runs it; here there is no reference.

    Relations:
        `dpo` with a reference that gives every response the same probability.
    """
    return -F.logsigmoid(beta * (pairs.chosen_logps - pairs.rejected_logps))


@register_loss("simpo", paper="2405.14734", reference_free=True, length_normalized=True)
def simpo(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 2.0,
    gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5,
) -> Tensor:
    """SimPO: length-normalised log-probs as the reward, with a target margin and no reference.

    Equation:
        -log sigmoid(beta * (m_w - m_l) - gamma), gamma = gamma_beta_ratio * beta, with the mean log-prob per token
        m_w = `pairs.chosen_mean_logps`, m_l = `pairs.rejected_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.
        beta: scale of the reward.
        gamma_beta_ratio: target margin as a share of beta.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> pairs = PreferencePairs(torch.tensor([-2.0]), torch.tensor([-6.0]), None, None, torch.tensor([2]),
        ...                         torch.tensor([4]))  # means -1 and -1.5, so the margin 0.5 meets its target
        >>> round(simpo(pairs).item(), 4)
        0.6931

    Reference:
        arXiv 2405.14734, Eq. 6.

    Departures:
        gamma is given as its ratio to beta, as the authors tune it.

    Relations:
        `reference_free_dpo` at gamma_beta_ratio = 0, where every response has one token.
    """
    margins = pairs.chosen_mean_logps - pairs.rejected_mean_logps
    return -F.logsigmoid(beta * (margins - gamma_beta_ratio))


@register_loss("alphapo", paper="2501.03884", reference_free=True, length_normalized=True)
def alphapo(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 2.5,
    gamma: Annotated[float, Ge(0)] = 0.1,
    alpha: float = 0.25,
) -> Tensor:
    """AlphaPO: SimPO with a reward whose shape controls how far both responses fall.

    Equation:
        -log sigmoid(beta * (R_w - R_l) - gamma), R = (1 - p^(-alpha)) / alpha, with the geometric mean probability of
        a token p = exp(m), m_w = `pairs.chosen_mean_logps`, m_l = `pairs.rejected_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.
        beta: scale of the reward.
        gamma: target margin.
        alpha: shape of the reward; 0 is the logarithm.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, lengths = torch.tensor([0.5, 0.25]).log(), torch.ones(1)
        >>> pairs = PreferencePairs(logps[:1], logps[1:], None, None, lengths, lengths)
        >>> # R_w = 1 - 2 and R_l = 1 - 4 at alpha = 1
        >>> round(alphapo(pairs, beta=1.0, gamma=2.0, alpha=1.0).item(), 4)
        0.6931

    Reference:
        arXiv 2501.03884.

    Departures:
        None. The exponent -alpha * m is capped at 80, far beyond any token probability of a model.

    Relations:
        `simpo` as alpha goes to 0, with gamma_beta_ratio = gamma / beta.
    """

    def reward(mean_logps: Tensor) -> Tensor:
        if alpha == 0:
            return mean_logps
        return -torch.expm1(clip(-alpha * mean_logps, high=_MAX_EXPONENT)) / alpha

    margins = reward(pairs.chosen_mean_logps) - reward(pairs.rejected_mean_logps)
    return -F.logsigmoid(beta * margins - gamma)


@register_loss("simper", paper="2502.00883", reference_free=True, length_normalized=True)
def simper(pairs: PreferencePairs) -> Tensor:
    """SimPER: the difference of the inverse perplexities, without any hyperparameter.

    Equation:
        -exp(m_w) + exp(m_l), with m_w = `pairs.chosen_mean_logps`, m_l = `pairs.rejected_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.

    Returns:
        [N] loss between -1 and 1; 0 where both responses have the same perplexity.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, lengths = torch.tensor([0.25, 0.5]).log(), torch.tensor([2])
        >>> simper(PreferencePairs(logps[:1], logps[1:], None, None, lengths, lengths - 1)).item()  # -sqrt(1/4) + 1/2
        0.0

    Reference:
        arXiv 2502.00883, checked against the authors' code (scripts/simper_trainer.py).

    Departures:
        None. The mean log-prob is capped at 80, far beyond any token probability of a model.

    Relations:
        The gradient of `unlikelihood` at alpha = 1 times p, for responses of one token, both of probability p.
    """
    chosen, rejected = (clip(m, high=_MAX_EXPONENT) for m in (pairs.chosen_mean_logps, pairs.rejected_mean_logps))
    return rejected.exp() - chosen.exp()


@register_loss("cpo", paper="2401.08417", reference_free=True)
def cpo(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1, alpha: Annotated[float, Ge(0)] = 1.0) -> Tensor:
    """Contrastive Preference Optimization: reference-free DPO plus the likelihood of the chosen response.

    Equation:
        -log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))) - alpha * m_w, with `pairs.chosen_logps`,
        `pairs.rejected_logps` and the mean log-prob per token m_w = `pairs.chosen_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.
        beta: scale of the log-prob difference.
        alpha: weight of the likelihood term.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, lengths = torch.tensor([-3.0]), torch.tensor([2])
        >>> round(cpo(PreferencePairs(logps, logps, None, None, lengths, lengths)).item(), 4)  # log 2 + 3/2
        2.1931

    Reference:
        arXiv 2401.08417, Eq. 3.

    Departures:
        The paper writes the likelihood term as the log-prob of the response. The authors' code takes the mean over the
        chosen tokens of the batch. Here it is the mean over each response's own tokens, so that pairs stay
        independent.

    Relations:
        `reference_free_dpo` at alpha = 0.
    """
    preference = -F.logsigmoid(beta * (pairs.chosen_logps - pairs.rejected_logps))
    return preference - alpha * pairs.chosen_mean_logps


@register_loss("cpo_simpo", paper="fe1ixxu/CPO_SIMPO", reference_free=True, length_normalized=True)
def cpo_simpo(
    pairs: PreferencePairs,
    *,
    beta: Annotated[float, Gt(0)] = 10.0,
    gamma: Annotated[float, Ge(0)] = 5.4,
    alpha: Annotated[float, Ge(0)] = 0.05,
) -> Tensor:
    """SimPO plus CPO's likelihood of the chosen response.

    Equation:
        -log sigmoid(beta * (m_w - m_l) - gamma) - alpha * m_w, with the mean log-prob per token
        m_w = `pairs.chosen_mean_logps`, m_l = `pairs.rejected_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.
        beta: scale of the reward.
        gamma: target margin.
        alpha: weight of the likelihood term.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> pairs = PreferencePairs(torch.tensor([-2.0]), torch.tensor([-6.0]), None, None, torch.tensor([2]),
        ...                         torch.tensor([4]))  # means -1 and -1.5
        >>> round(cpo_simpo(pairs, beta=2.0, gamma=1.0, alpha=0.5).item(), 4)  # log 2 + 0.5
        1.1931

    Reference:
        The CPO_SIMPO repository, which has no paper; defaults from its Llama-3 configuration.

    Departures:
        The likelihood term is the mean over each response's own tokens; the authors take it over the chosen tokens of
        the batch.

    Relations:
        `simpo` at alpha = 0, with gamma_beta_ratio = gamma / beta.
    """
    chosen = pairs.chosen_mean_logps
    return -F.logsigmoid(beta * (chosen - pairs.rejected_mean_logps) - gamma) - alpha * chosen


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean_logps); finite with finite gradient for p up to 1."""
    # Where p rounds to 1 the odds are infinite; one rounding step below 1 they are 1 / eps.
    mean_logps = clip(mean_logps, high=-torch.finfo(mean_logps.dtype).eps)
    return mean_logps - torch.log(-torch.expm1(mean_logps))


@register_loss("orpo", paper="2403.07691", reference_free=True, length_normalized=True, trl_fields={"beta": "lam"})
def orpo(pairs: PreferencePairs, *, lam: Annotated[float, Ge(0)] = 0.1) -> Tensor:
    """Odds Ratio Preference Optimization: fine-tuning on the chosen response, plus an odds-ratio penalty.

    Equation:
        -m_w - lam * log sigmoid(o_w - o_l), o = log(p / (1 - p)), with the geometric mean probability of a token
        p = exp(m), m_w = `pairs.chosen_mean_logps`, m_l = `pairs.rejected_mean_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats and their lengths in tokens; the reference's are not read.
        lam: weight of the odds-ratio term.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> logps, lengths = torch.tensor([0.75, 0.25]).log(), torch.ones(1)
        >>> pairs = PreferencePairs(logps[:1], logps[1:], None, None, lengths, lengths)  # odds 3 and 1/3
        >>> round(orpo(pairs, lam=1.0).exp().item(), 4)  # 1 / 0.75 / sigmoid(log 9)
        1.4815

    Reference:
        arXiv 2403.07691, Eq. 6 and 7; the authors' code has the same odds ratio.

    Departures:
        The likelihood term is the mean over the tokens of each chosen response. TRL's ORPOTrainer takes it over all
        tokens of the batch's prompts and chosen responses, so its loss differs. A probability that rounds to 1 counts
        as one rounding step below 1, where the odds are still finite.

    Relations:
        `sft` at lam = 0, for a batch of one prompt.
    """
    log_odds_ratio = _log_odds(pairs.chosen_mean_logps) - _log_odds(pairs.rejected_mean_logps)
    return -pairs.chosen_mean_logps - lam * F.logsigmoid(log_odds_ratio)


@register_loss("slic", paper="2305.10425", reference_free=True)
def slic(pairs: PreferencePairs, *, delta: Annotated[float, Ge(0)] = 1.0, lam: Annotated[float, Ge(0)] = 0.1) -> Tensor:
    """SLiC-HF: a hinge on the difference of the log-probs, plus the likelihood of the chosen response.

    Equation:
        max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lam * log pi(y_w|x), with `pairs.chosen_logps` and
        `pairs.rejected_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats; the reference's are not read.
        delta: required margin, nats.
        lam: weight of the likelihood term.

    Returns:
        [N] loss, nats.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> one = torch.ones(1)
        >>> pairs = PreferencePairs(-2 * one, -2.5 * one, None, None, one, one)
        >>> slic(pairs, delta=1.0, lam=0.25).item()  # 1 - 0.5 + 0.25 * 2
        1.0

    Reference:
        arXiv 2305.10425.

    Departures:
        The paper's likelihood term uses the reference summary of its fine-tuning data; here it uses the chosen
        response.

    Relations:
        `hinge` with beta = 1 and a reference that gives every response the same probability, at delta = 1, lam = 0.
    """
    hinge = positive_part(delta - pairs.chosen_logps + pairs.rejected_logps, slope_at_zero=0)
    return hinge - lam * pairs.chosen_logps


@register_loss("unlikelihood", paper="2305.18290", reference_free=True)
def unlikelihood(pairs: PreferencePairs, *, alpha: Annotated[float, Ge(0), Le(1)] = 0.5) -> Tensor:
    """Unlikelihood: raise the log-prob of the chosen response and lower the rejected one's, without a bound.

    Equation:
        -log pi(y_w|x) + alpha * log pi(y_l|x), with `pairs.chosen_logps` and `pairs.rejected_logps`.

    Args:
        pairs: N pairs, [N] float log-probs in nats; the reference's are not read.
        alpha: weight of the rejected response.

    Returns:
        [N] loss, nats; unbounded below, so training can diverge for a large alpha.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import PreferencePairs
        >>> one = torch.ones(1)
        >>> pairs = PreferencePairs(-2 * one, -3.0 * one, None, None, one, one)
        >>> unlikelihood(pairs).item()
        0.5

    Reference:
        arXiv 2305.18290, section 6 and appendix C.3, where it is a baseline described in words.

    Departures:
        None.

    Relations:
        `sft` at alpha = 0, for a batch of one prompt and a chosen response of one token.
    """
    return -pairs.chosen_logps + alpha * pairs.rejected_logps
