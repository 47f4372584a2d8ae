"""How far the policy has moved from the reference: the sequence KL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .sampling import Samples, sequence_logps

Reference = nn.Module | Callable[[], AbstractContextManager[Any]]
"""The reference model; or a function that opens a context in which the policy is the reference, such as a PEFT
model's `disable_adapter`, or which yields the reference model, such as the trainer's `reference`."""


@dataclass(frozen=True)
class SequenceKL:
    """An estimate of KL(policy || reference).

    Attributes:
        mean: nats a completion.
        standard_error: of the mean.
    """

    mean: float
    standard_error: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def sequence_kl(model: Any, samples: Samples, reference: Reference, *, batch_size: int = 32) -> SequenceKL:
    """Estimate the sequence KL(policy || reference) from the policy's own samples.

    The mean over samples of log pi(y|x) - log pi_ref(y|x), log-probs summed over the completion. It is unbiased for
    the KL of completions of up to as many tokens as were sampled, averaged over the prompts; being a mean of noisy
    log-ratios it can come out below zero.

    Args:
        model: the policy.
        samples: drawn from `model` as it is now, at temperature 1; one a prompt, so that they are independent.
        reference: a model, or a function that opens a context, as `model.disable_adapter`; the latter needs no second
            copy in memory.
        batch_size: sequences a forward.

    Raises:
        ValueError: samples of another temperature, whose mean log-ratio is no KL of `model`; or fewer than two.
    """
    if samples.temperature != 1:
        raise ValueError(f"Samples at temperature {samples.temperature} give no KL of the model; take temperature 1.")
    if len(samples) < 2:
        raise ValueError(f"A standard error needs at least two samples, got {len(samples)}.")
    sequences = (samples.prompt_ids, samples.completion_ids)
    logps = sequence_logps(model, *sequences, batch_size=batch_size)
    if isinstance(reference, nn.Module):
        ref_logps = sequence_logps(reference, *sequences, batch_size=batch_size)
    else:
        with reference() as yielded:
            ref_model = yielded if isinstance(yielded, nn.Module) else model
            ref_logps = sequence_logps(ref_model, *sequences, batch_size=batch_size)
    log_ratios = logps.double() - ref_logps.double()
    return SequenceKL(log_ratios.mean().item(), (log_ratios.std() / len(samples) ** 0.5).item())
