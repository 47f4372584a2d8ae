"""The metrics that a run's evaluations will have, known before a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ..training import PreferenceConfig
from ..training.metrics import batch_metrics
from ..types import RankedResponses

# What transformers adds to each evaluation, and what only some models and runs have.
_ALWAYS = ("loss", "runtime", "samples_per_second", "steps_per_second")
_SOMETIMES = ("aux_loss", "num_tokens")


def evaluation_metrics(config: PreferenceConfig) -> set[str]:
    """Return the names of a run's evaluation metrics, without "eval_".

    They are those of a made-up batch, which goes through the losses and metrics of the configuration.

    Returns:
        The names, or an empty set if a loss can't read the made-up batch.
    """
    objective = config.objective()
    responses = _made_up_batch()
    if "labels" not in objective.needs:
        responses = responses.replace(labels=None)
    tokens = torch.zeros(*responses.logps.shape, 4)
    policy: Any = SimpleNamespace(by_response=lambda name: tokens)
    try:
        _, of_losses = objective(responses, training=False)
        names = set(batch_metrics(objective, responses, policy, of_losses))
    except Exception:  # a registered loss may need what this batch doesn't have; a typo is then found later
        return set()
    return {*names, *_ALWAYS, *_SOMETIMES}


def _made_up_batch() -> RankedResponses:
    """Return 2 prompts with 3 responses of 4 tokens each, and all that a loss can ask for."""
    token_logps = -0.1 - torch.arange(24.0).reshape(2, 3, 4) / 24
    logps, ranks = token_logps.sum(dim=2), torch.tensor([[0, 1, 2], [2, 0, 1]])
    return RankedResponses(
        logps=logps,
        ref_logps=logps.flip(1),
        lengths=torch.full((2, 3), 4),
        ranks=ranks,
        mask=torch.ones(2, 3, dtype=torch.bool),
        scores=-ranks.float(),
        labels=torch.where(ranks == 0, 1, -1).to(torch.int8),
        reference_scores=torch.zeros(2, 1),
        reference_scores_mask=torch.ones(2, 1, dtype=torch.bool),
        prompt_weights=torch.ones(2),
        mismatched_logps=logps[:, 0],
        ref_mismatched_logps=logps[:, 1],
        weights=torch.ones(2, 3),
        token_logps=token_logps,
        ref_token_logps=token_logps.flip(1),
    )
