"""Losses on single responses, each labelled desirable or undesirable."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ...types import RankedResponses
from ..loss_registry import register_loss
from ..rank_masks import zero_masked


def _labelled(responses: RankedResponses) -> tuple[RankedResponses, Tensor, Tensor]:
    """Return the responses without what is masked, and [B, K] masks of the desirable and of the undesirable ones."""
    labels = responses.required_labels()
    return zero_masked(responses), responses.mask & (labels > 0), responses.mask & (labels < 0)


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    """[B] mean over each prompt's labelled responses; 0 without any."""
    return losses.masked_fill(~known, 0).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def _reference_point(responses: RankedResponses) -> Tensor:
    """z0, a scalar without gradient: the mean log-ratio of the labelled prompts' mismatched completions, at least 0."""
    _, good, bad = _labelled(responses)
    prompts = (good | bad).any(dim=1)
    ratios = responses.mismatched_log_ratios.detach().masked_fill(~prompts, 0)
    return (ratios.sum() / prompts.sum().clamp(min=1)).clamp(min=0)


def _kl(responses: RankedResponses, **_: float) -> dict[str, Tensor]:
    """[B] the KL estimate z0 of the step, nats, the same for each prompt."""
    return {"kl": _reference_point(responses).expand(len(responses))}


@register_loss(
    "kto", paper="2402.01306", needs=["labels", "mismatched"], single_responses=True, couples_batch=True, metrics=_kl
)
def kto(
    responses: RankedResponses,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    lambda_d: Annotated[float, Gt(0)] = 1.0,
    lambda_u: Annotated[float, Gt(0)] = 1.0,
) -> Tensor:
    """Kahneman-Tversky Optimization: a value function of gains and losses around the policy's KL to the reference.

    Equation:
        desirable: lambda_d * (1 - sigmoid(beta * (D - z0))); undesirable: lambda_u * (1 - sigmoid(beta * (z0 - D))),
        with D = `responses.log_ratios` and z0 = max(0, mean of `responses.mismatched_log_ratios`), without gradient.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and labels, with a reference, and [B] log-probs of a
            mismatched completion; ragged K through `responses.mask`.
        beta: strength of the KL penalty.
        lambda_d: weight of the desirable responses.
        lambda_u: weight of the undesirable ones.

    Returns:
        [B] mean over the prompt's labelled responses; 0 for a prompt without any, and for a fully masked one.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no labels or no mismatched completions.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks, labels = torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([[1, -1]])
        >>> z = torch.zeros(1)
        >>> responses = RankedResponses(zeros, zeros, ranks + 1, ranks, ranks >= 0, labels=labels,
        ...                             mismatched_logps=z, ref_mismatched_logps=z)
        >>> kto(responses, lambda_d=2.0).item()  # (2 * 0.5 + 0.5) / 2
        0.75

    Reference:
        arXiv 2402.01306, Eq. 8 and the estimate of z0 below it; checked against the installed TRL's KTOTrainer.

    Departures:
        z0 is the mean over the optimizer step; the paper and TRL take a micro-batch. The mismatched completion is that
        of the nearest row before with another prompt; TRL shifts completions within each batch. A prompt with several
        responses has one mismatched completion.

    Relations:
        `apo_zero_unpaired` where z0 is 0.
    """
    responses, good, bad = _labelled(responses)
    gain = beta * (responses.log_ratios - _reference_point(responses))
    losses = torch.where(good, lambda_d * torch.sigmoid(-gain), lambda_u * torch.sigmoid(gain))
    return _mean(losses, good | bad)


@register_loss("apo_zero_unpaired", paper="2408.06266", needs=["labels"], single_responses=True)
def apo_zero_unpaired(
    responses: RankedResponses,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    lambda_d: Annotated[float, Gt(0)] = 1.0,
    lambda_u: Annotated[float, Gt(0)] = 1.0,
) -> Tensor:
    """APO-zero on single responses: desirable ones become more likely than under the reference, others less.

    Equation:
        desirable: lambda_d * (1 - sigmoid(beta * D)); undesirable: lambda_u * sigmoid(beta * D), with
        D = `responses.log_ratios`.

    Args:
        responses: B prompts, [B, K] float log-probs in nats and labels, with a reference; ragged K through
            `responses.mask`.
        beta: strength of the KL penalty.
        lambda_d: weight of the desirable responses.
        lambda_u: weight of the undesirable ones.

    Returns:
        [B] mean over the prompt's labelled responses; 0 for a prompt without any, and for a fully masked one.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no labels.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks, labels = torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
        >>> responses = RankedResponses(zeros, zeros, ranks + 1, ranks, ranks >= 0, labels=labels)
        >>> apo_zero_unpaired(responses).item()
        0.5

    Reference:
        arXiv 2408.06266, Eq. 7 without its pairs; checked against the installed TRL's KTOTrainer, which has the loss.

    Departures:
        None.

    Relations:
        `apo_zero` times one half, for one desirable and one undesirable response.
    """
    responses, good, bad = _labelled(responses)
    reward = beta * responses.log_ratios
    losses = torch.where(good, lambda_d * torch.sigmoid(-reward), lambda_u * torch.sigmoid(reward))
    return _mean(losses, good | bad)


def _labelled_rewards(responses: RankedResponses, *, beta: float) -> Tensor:
    """[N] mean reward of the labelled responses of each prompt that has any."""
    responses, good, bad = _labelled(responses)
    known = good | bad
    return _mean(beta * responses.log_ratios, known)[known.any(dim=1)]


@register_loss(
    "bco_unpaired",
    paper="2404.04656",
    needs=["labels", "weight"],
    single_responses=True,
    statistic=_labelled_rewards,
)
def bco_unpaired(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.01) -> Tensor:
    """Binary Classifier Optimization on single responses: classify each by its label, against the mean reward so far.

    Equation:
        desirable: -log sigmoid(beta * D - d); undesirable: -w * log sigmoid(d - beta * D), with
        D = `responses.log_ratios`, d = `responses.running_mean` of the rewards, and w the row's `weight` (1 without).

    Args:
        responses: B prompts, [B, K] float log-probs in nats and labels, with a reference and the running mean of the
            rewards; optionally [B] weights; ragged K through `responses.mask`.
        beta: strength of the KL penalty.

    Returns:
        [B] mean over the prompt's labelled responses, nats; 0 for a prompt without any, and for a fully masked one.

    Raises:
        MissingReferenceError: the responses hold no reference log-probs.
        MissingInputError: the responses hold no labels or no running mean.

    Example:
        >>> import torch
        >>> from trl_dpo_ext import RankedResponses
        >>> zeros, ranks, labels = torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([[1, -1]])
        >>> responses = RankedResponses(zeros, zeros, ranks + 1, ranks, ranks >= 0, labels=labels,
        ...                             running_mean=torch.tensor(0.0))
        >>> round(bco_unpaired(responses).exp().item(), 4)
        2.0

    Reference:
        arXiv 2404.04656.

    Departures:
        w is 1 unless `match_prompts` is set or the data have a column `weight`. The setting estimates it as the paper
        does, by a logistic regression on embeddings of the prompts; the embedding is the reference's mean last hidden
        state, and the ratio is cut to 0.5 and 10, as in TRL's BCO trainer. The running mean weights every optimizer
        step equally.

    Relations:
        `bco` times one half, for one desirable and one undesirable response and equal running means.
    """
    shift = responses.required("running_mean").detach()
    responses, good, bad = _labelled(responses)
    reward = beta * responses.log_ratios - shift
    weights = responses.prompt_weights
    undesirable = -F.logsigmoid(-reward) * (1 if weights is None else weights.unsqueeze(1))
    return _mean(torch.where(good, -F.logsigmoid(reward), undesirable), good | bad)
