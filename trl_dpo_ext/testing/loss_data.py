"""The input of the checks: random rankings, reduced to what a loss declares."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import LossSpec
from ..types import PreferencePairs, RankedResponses

LossInput = PreferencePairs | RankedResponses


def random_rankings(
    seed: int = 0, prompts: int = 3, responses: int = 4, *, ragged: bool = False, dtype: torch.dtype = torch.float64
) -> RankedResponses:
    """Return random rankings with every field that a loss can read; equal arguments give equal rankings.

    Args:
        seed: random seed.
        prompts: number of prompts, B.
        responses: number of responses per prompt, K.
        ragged: whether some prompts have fewer than K responses (but at least two); the rest is masked.
        dtype: dtype of log-probs and scores.

    Returns:
        Rankings without ties, with log-ratios of both signs; better ranks have higher scores.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, responses)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, 9, shape, generator=generator)
    tokens = torch.arange(8).expand(*shape, 8) < lengths.unsqueeze(2)
    token_logps = uniform(-2, -0.05, *shape, 8) * tokens
    ref_token_logps = token_logps + uniform(-0.5, 0.5, *shape, 8) * tokens
    ranks = uniform(0, 1, *shape).argsort(dim=1)
    kept = uniform(2, responses + 1, prompts).long() if ragged else torch.full((prompts,), responses)
    return RankedResponses(
        logps=token_logps.sum(dim=2).to(dtype),
        ref_logps=ref_token_logps.sum(dim=2).to(dtype),
        lengths=lengths,
        ranks=ranks,
        mask=uniform(0, 1, *shape).argsort(dim=1) < kept.unsqueeze(1),
        scores=(1.5 - 0.7 * ranks + uniform(0, 0.6, *shape)).to(dtype),
        labels=torch.where(ranks == 0, 1, -1).to(torch.int8),
        reference_scores=uniform(-1, 2, prompts, 3).to(dtype),
        reference_scores_mask=torch.tensor([True, True, False]).expand(prompts, 3),
        prompt_weights=uniform(0.5, 2, prompts).to(dtype),
        mismatched_logps=uniform(-9, -5, prompts).to(dtype),
        ref_mismatched_logps=uniform(-12, -8, prompts).to(dtype),
        token_logps=token_logps.to(dtype),
        ref_token_logps=ref_token_logps.to(dtype),
    )


def loss_input(spec: LossSpec, responses: RankedResponses) -> LossInput:
    """Return what the trainer would pass to a loss: only the inputs that it declares, as pairs if it is pairwise."""
    responses = responses.replace(
        ref_logps=None if spec.reference_free else responses.ref_logps,
        scores=responses.scores if "scores" in spec.needs else None,
        labels=responses.labels if "labels" in spec.needs else None,
        reference_scores=responses.reference_scores if "reference_scores" in spec.needs else None,
        reference_scores_mask=responses.reference_scores_mask if "reference_scores" in spec.needs else None,
        prompt_weights=responses.prompt_weights if "weight" in spec.needs else None,
        mismatched_logps=responses.mismatched_logps if "mismatched" in spec.needs else None,
        ref_mismatched_logps=responses.ref_mismatched_logps if "mismatched" in spec.needs else None,
        token_logps=responses.token_logps if "token_logps" in spec.needs else None,
        ref_token_logps=responses.ref_token_logps if "token_logps" in spec.needs and not spec.reference_free else None,
    )
    data: LossInput = responses if spec.listwise else responses.pairs(ties="ties" in spec.needs)
    if spec.statistic is not None:
        values = spec.statistic(data, **spec.check({})).detach()
        data = data.replace(batch_mean=values.mean(), running_mean=values.mean() / 2 + 0.1)
    return data
