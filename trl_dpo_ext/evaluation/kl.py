"""How far the policy has moved from the reference: the sequence KL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling.next_token_logits import NextTokenLogits
from .sampling import Samples, evaluation_mode, right_padded

# NextTokenLogits at once in float32 over the whole vocabulary, of both models: 77 MB each for a vocabulary of 150 000.
CHUNK = 128

Reference = nn.Module | Callable[[], AbstractContextManager[Any]]
"""The reference model; or a function that opens a context in which the policy is the reference, such as a PEFT
model's `disable_adapter`, or which yields the reference model, such as the trainer's `reference`."""


@dataclass(frozen=True)
class SequenceKL:
    """Two estimates of KL(policy || reference) from the same samples, nats a completion; both are unbiased.

    Attributes:
        mean: of the samples' log-ratios log pi(y|x) - log pi_ref(y|x). Noisy: it can come out below zero.
        standard_error: of the mean.
        summed: mean of the exact KL of the next-token distributions, summed along each sample. Never below zero but
            for rounding, and usually, though not of necessity, of less variance.
        summed_standard_error: of it.
    """

    mean: float
    standard_error: float
    summed: float
    summed_standard_error: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)

    @classmethod
    def of(cls, values: Tensor) -> SequenceKL:
        """Return the means of what `sequence_kls` found, with their standard errors."""
        (mean, summed), errors = values.mean(dim=0).tolist(), values.std(dim=0) / len(values) ** 0.5
        return cls(mean, float(errors[0]), summed, float(errors[1]))


def sequence_kl(model: Any, samples: Samples, reference: Reference, *, batch_size: int = 32) -> SequenceKL:
    """Estimate the sequence KL(policy || reference) in two ways; arguments and errors as of `sequence_kls`."""
    return SequenceKL.of(sequence_kls(model, samples, reference, batch_size=batch_size))


def sequence_kls(model: Any, samples: Samples, reference: Reference, *, batch_size: int = 32) -> Tensor:
    """Return two values of each sample, the means of which estimate the sequence KL(policy || reference).

    With y ~ pi(.|x), the KL of completions of up to as many tokens as were sampled, averaged over the prompts, is the
    expectation of

        log pi(y|x) - log pi_ref(y|x),  and of  sum over t of  KL(pi(.|x, y_<t) || pi_ref(.|x, y_<t)),

    t running over the sampled tokens, the end-of-sequence token included. The second takes the expectation over each
    token by itself and leaves only the choice of the prefixes to chance.

    Args:
        model: the policy.
        samples: drawn from `model` as it is now, at temperature 1; one a prompt, so that they are independent.
        reference: a model, or a function that opens a context, as `model.disable_adapter`; the latter needs no second
            copy in memory.
        batch_size: sequences a forward.

    Returns:
        [N, 2] float64 on the CPU: log-ratio, and summed KL of the next-token distributions, nats.

    Raises:
        ValueError: samples of another temperature, whose mean log-ratio is no KL of `model`; or fewer than two.

    Reference:
        The chain rule of the KL divergence (Cover & Thomas, Elements of Information Theory, theorem 2.5.3).
    """
    if samples.temperature != 1:
        raise ValueError(f"Samples at temperature {samples.temperature} give no KL of the model; take temperature 1.")
    if len(samples) < 2:
        raise ValueError(f"A standard error needs at least two samples, got {len(samples)}.")
    batches = []
    with evaluation_mode(model):
        for start in range(0, len(samples), batch_size):
            rows = slice(start, start + batch_size)
            batches.append(sample_kls(model, samples.prompt_ids[rows], samples.completion_ids[rows], reference))
    return torch.cat(batches)


def sample_kls(
    model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], reference: Reference
) -> Tensor:
    """Return what `sequence_kls` does, for one batch.

    Args:
        model: the policy, in evaluation mode.
        prompt_ids: [B] token ids, at least one each.
        completion_ids: [B] token ids.
        reference: as in `sequence_kl`.

    Returns:
        [B, 2] float64 on the CPU: log-ratio, and summed KL of the next-token distributions, nats.
    """
    input_ids, attention_mask, labels = right_padded(prompt_ids, completion_ids)
    chosen = F.pad(labels[:, 1:] != -100, (0, 1), value=False)
    targets, sequence = labels[:, 1:][chosen[:, :-1]], chosen.nonzero()[:, 0]

    def positions(network: Any) -> NextTokenLogits:
        inputs = {"input_ids": input_ids.to(network.device), "attention_mask": attention_mask.to(network.device)}
        return NextTokenLogits(network, chosen, **inputs)

    values = torch.zeros(len(input_ids), 2, dtype=torch.float64)
    with torch.no_grad():
        policy = positions(model)
        with _as_reference(reference, model) as network:
            other = positions(network)
        for start in range(0, len(policy), CHUNK):
            rows = slice(start, start + CHUNK)
            logps = policy.logps(rows)
            with _as_reference(reference, model):  # again, since the head may have an adapter
                ref_logps = other.logps(rows).to(logps.device)
            log_ratios = logps - ref_logps
            sampled = log_ratios.gather(1, targets[rows, None].to(logps.device))[:, 0]
            found = torch.stack([sampled, (logps.exp() * log_ratios).sum(dim=1)], dim=1)
            values.index_add_(0, sequence[rows], found.double().cpu())
    return values


@contextmanager
def _as_reference(reference: Reference, model: Any) -> Iterator[Any]:
    """Yield the model that is the reference while this is open."""
    if isinstance(reference, nn.Module):
        with evaluation_mode(reference):
            yield reference
        return
    with reference() as yielded:
        network = yielded if isinstance(yielded, nn.Module) else model
        with evaluation_mode(network):
            yield network
