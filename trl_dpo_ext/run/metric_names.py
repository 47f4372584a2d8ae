"""The metrics that a run's evaluations will have, known before a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ..testing.loss_data import random_rankings
from ..training import PreferenceConfig
from ..training.metrics import batch_metrics

# What transformers adds to each evaluation, and what only some models and runs have.
_ALWAYS = ("loss", "runtime", "samples_per_second", "steps_per_second")
_SOMETIMES = ("aux_loss", "num_tokens")


def evaluation_metrics(config: PreferenceConfig) -> set[str]:
    """Return the names of a run's evaluation metrics, without "eval_".

    They are those of a random batch, which goes through the losses and metrics of the configuration.

    Returns:
        The names, or an empty set if a loss can't read a random batch.
    """
    responses = random_rankings(dtype=torch.float32)
    responses = responses.replace(weights=torch.ones_like(responses.logps))
    assert responses.token_logps is not None
    shape = responses.token_logps.shape
    policy: Any = SimpleNamespace(by_response=lambda name: torch.zeros(shape))
    objective = config.objective()
    try:
        _, of_losses = objective(responses, training=False)
        names = set(batch_metrics(objective, responses, policy, of_losses))
    except Exception:  # a registered loss may need what a random batch doesn't have; a typo is then found later
        return set()
    return {*names, *_ALWAYS, *_SOMETIMES}
