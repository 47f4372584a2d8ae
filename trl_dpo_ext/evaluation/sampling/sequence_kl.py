"""The sequence KL: how far the policy has moved from the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modeling.forward import evaluation_mode
from ...modeling.next_token_logits import NextTokenLogits
from .samples import Samples

# Positions whose float32 log-probs over the vocabulary are in memory at once: 77 MB per model for 150 000 tokens.
CHUNK = 128

Reference = nn.Module | Callable[[], AbstractContextManager[Any]]
"""The reference model, or a function that opens a context. Within the context the policy is the reference (a PEFT
model's `disable_adapter`), or the context yields the reference model (the trainer's `reference`)."""


@dataclass(frozen=True)
class SequenceKL:
    """Two unbiased estimates of KL(policy || reference) from the same samples, in nats per completion.

    Attributes:
        mean: mean log-ratio log pi(y|x) - log pi_ref(y|x) of the samples. It is noisy and can be negative.
        standard_error: standard error of `mean`.
        summed: mean over samples of the exact KL of the next-token distributions, summed over the sample's tokens.
            Not negative except for rounding, and usually less noisy.
        summed_standard_error: standard error of `summed`.
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
        """Return the means and standard errors of the [N, 2] values of `sequence_kls`."""
        (mean, summed), errors = values.mean(dim=0).tolist(), values.std(dim=0) / len(values) ** 0.5
        return cls(mean, float(errors[0]), summed, float(errors[1]))


def sequence_kl(model: Any, samples: Samples, reference: Reference, *, batch_size: int = 32) -> SequenceKL:
    """Estimate the sequence KL(policy || reference) in two ways. Arguments and errors as in `sequence_kls`."""
    return SequenceKL.of(sequence_kls(model, samples, reference, batch_size=batch_size))


def sequence_kls(model: Any, samples: Samples, reference: Reference, *, batch_size: int = 32) -> Tensor:
    """Return two values per sample whose means estimate the sequence KL(policy || reference).

    For y ~ pi(.|x), the KL over completions of at most the sampled length, averaged over prompts, is the expectation of

        log pi(y|x) - log pi_ref(y|x),  and of  sum over t of  KL(pi(.|x, y_<t) || pi_ref(.|x, y_<t)),

    where t runs over the sampled tokens, end-of-sequence included. The second takes the expectation over each token
    exactly, so only the prefixes are random.

    Args:
        model: the policy.
        samples: drawn from `model` as it is now, at temperature 1, one per prompt so that they are independent.
        reference: a model, or a function that opens a context such as `model.disable_adapter`, which needs no second
            model in memory.
        batch_size: sequences per forward pass.

    Returns:
        [N, 2] float64 on the CPU: log-ratio, and summed KL of the next-token distributions, nats.

    Raises:
        ValueError: the samples have another temperature, so they don't give the KL of `model`; or there are fewer than
            two.

    Reference:
        The chain rule of the KL divergence (Cover & Thomas, Elements of Information Theory, theorem 2.5.3).
    """
    if samples.temperature != 1:
        raise ValueError(
            f"Samples at temperature {samples.temperature} don't give the model's KL. Sample at temperature 1."
        )
    if len(samples) < 2:
        raise ValueError(f"A standard error needs at least two samples, got {len(samples)}.")
    batches = []
    with torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(samples), batch_size):
            rows = slice(start, start + batch_size)
            batches.append(sample_kls(model, samples.prompt_ids[rows], samples.completion_ids[rows], reference))
    return torch.cat(batches)


def sample_kls(
    model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], reference: Reference
) -> Tensor:
    """Return the two values of `sequence_kls` for one batch.

    Args:
        model: the policy, in evaluation mode.
        prompt_ids: [B] token ids, at least one each.
        completion_ids: [B] token ids.
        reference: as in `sequence_kl`.

    Returns:
        [B, 2] float64 on the CPU: log-ratio, and summed KL of the next-token distributions, nats.
    """
    input_ids, attention_mask, labels = _right_padded(prompt_ids, completion_ids)
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
            with _as_reference(reference, model):  # again, because the head may have an adapter
                ref_logps = other.logps(rows).to(logps.device)
            log_ratios = logps - ref_logps
            sampled = log_ratios.gather(1, targets[rows, None].to(logps.device))[:, 0]
            found = torch.stack([sampled, (logps.exp() * log_ratios).sum(dim=1)], dim=1)
            values.index_add_(0, sequence[rows], found.double().cpu())
    return values


@contextmanager
def _as_reference(reference: Reference, model: Any) -> Iterator[Any]:
    """Yield the model that acts as the reference while the context is open."""
    if isinstance(reference, nn.Module):
        with torch.no_grad(), evaluation_mode(reference):
            yield reference
        return
    with reference() as yielded:
        network = yielded if isinstance(yielded, nn.Module) else model
        with torch.no_grad(), evaluation_mode(network):
            yield network


def _right_padded(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, attention mask and labels (-100 on prompt and padding), each [N, L]."""
    rows = list(zip(prompt_ids, completion_ids, strict=True))
    width = max(len(p) + len(c) for p, c in rows)
    padding = [width - len(p) - len(c) for p, c in rows]
    input_ids = [[*p, *c, *[0] * left] for (p, c), left in zip(rows, padding, strict=True)]
    attention_mask = [[1] * (width - left) + [0] * left for left in padding]
    labels = [[*[-100] * len(p), *c, *[-100] * left] for (p, c), left in zip(rows, padding, strict=True)]
    return torch.tensor(input_ids), torch.tensor(attention_mask), torch.tensor(labels)
