"""Compute losses over all prompts of an optimizer step, whatever it is cut into.

A loss may couple prompts (sort them, divide by their tokens, compare them with their mean), and a prompt may have more
responses than fit in memory at once. Both are cut the same way:

1. A first pass without gradients collects the log-probs of all micro-batches, and of all processes.
2. The losses and their derivative with respect to each log-prob are computed once, on every process.
3. The second pass runs each part with gradients, multiplies its log-probs by the derivatives, and propagates the sum
   back. By the chain rule, the gradients of all parts add up to that of the whole step.

A loss that couples nothing needs none of this, nor does a step of one part. A loss that couples prompts in a step of
one micro-batch per process needs no first pass: each process adds the log-probs of the others to its own.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..modeling.forward import Outputs, StoredOutputs, TokenOutputs
from ..modeling.passes import PASSES, passes_of, with_passes
from ..types import RankedResponses
from .objective import Objective
from .readable import Facts, counts

NUMBER, REAL_PASSES = "number", "real_passes"
"""Keys of a batch: its position in its step, and the number of its passes that have responses."""


Run = Callable[[Mapping[str, Any]], tuple[TokenOutputs, Tensor | None]]
ToResponses = Callable[[Outputs, Tensor | None, Mapping[str, Any]], RankedResponses]


@dataclass(frozen=True)
class Stored:
    """A micro-batch after the first pass: the losses' input, and the outputs that metrics are made of."""

    responses: RankedResponses
    outputs: StoredOutputs


@dataclass(frozen=True)
class PromptLosses:
    """The losses of B prompts, computed over the whole step.

    Attributes:
        values: [B] float32. Without `derivatives`, with the graph they were computed in.
        metrics: the losses' own metrics, [B] each.
        derivatives: of the sum of all losses of the step with respect to `logps` [B, K] and, where a loss reads them,
            `token_logps` [B, K, T]; empty if there are none.
        broken: [B] bool, the prompts to name if a loss of the step isn't finite.
    """

    values: Tensor
    metrics: Mapping[str, Tensor]
    broken: Tensor
    derivatives: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, prompts: slice, like: RankedResponses) -> PromptLosses:
        """Return the losses of some prompts, with derivatives in the shape of their own batch."""
        derivatives = {}
        for name, values in self.derivatives.items():
            shape = getattr(like, name).shape[1:]
            derivatives[name] = values[(prompts, *map(slice, shape))]
        metrics = {name: values[prompts] for name, values in self.metrics.items()}
        return PromptLosses(self.values[prompts], metrics, self.broken[prompts], derivatives)

    def differentiable(self, responses: RankedResponses, counted: bool = True) -> Tensor:
        """Return [B] the values, with the gradients that all losses of the step have through these responses.

        Args:
            responses: the prompts of the values, with differentiable log-probs; 0 for responses of other passes.
            counted: False returns zeros with these gradients, because another pass counts the values.
        """
        values = self.values if counted else torch.zeros_like(self.values)
        for name, derivative in self.derivatives.items():
            linear = (derivative * getattr(responses, name)).flatten(1).sum(dim=1)
            values = values + (linear - linear.detach())
        return values


class WholeStep:
    """The parts of one optimizer step, or of one evaluation batch, on this process.

    Every process must create and use it equally often, with equally many micro-batches.

    Args:
        batches: this process's micro-batches.
        objective: the losses.
        accelerator: the run's accelerator.
        training: whether the step trains: it moves the losses' running means.
        to_responses: makes the losses' input from a micro-batch, its outputs, and the reference's log-probs.
    """

    def __init__(
        self,
        batches: Sequence[Mapping[str, Any]],
        objective: Objective,
        accelerator: Accelerator,
        *,
        training: bool,
        to_responses: ToResponses,
    ) -> None:
        self._objective, self._accelerator, self._training = objective, accelerator, training
        self._to_responses = to_responses
        self.batches = _prepared(batches, accelerator)
        self._counts: Tensor | None = None
        if training:
            own = counts([term.spec for term in objective.terms], [Facts.of_batch(batch) for batch in batches])
            self._counts = accelerator.reduce(own.to(accelerator.device), reduction="sum")
        self._coupled = objective.couples_batch and len(batches) * accelerator.num_processes > 1
        self._losses: dict[int, PromptLosses] = {}
        self._stored: dict[int, Stored] = {}

    @property
    def prompts(self) -> Tensor:
        """The number of prompts in the step, over all micro-batches and processes."""
        assert self._counts is not None, "only a training step counts its prompts"
        return self._counts[0]

    def first_pass(self, number: int, run: Run) -> Stored | None:
        """Return the micro-batch as the first pass stored it, or None if it needs no first pass.

        The first call runs the pass over all micro-batches that the losses couple. It draws the same random numbers
        as the second pass will, so dropout drops the same.

        Args:
            number: the micro-batch's position in the step.
            run: runs policy and reference on one pass; returns the policy's outputs, and the reference's log-probs
                [B, K, T] (all stored ones, or those of the pass), or None if no loss reads them.
        """
        cut = len(passes_of(self.batches[number])) > 1
        if not cut and not (self._coupled and len(self.batches) > 1):
            return None
        if number not in self._stored:
            numbers = range(len(self.batches)) if self._coupled else [number]
            with _random_numbers_put_back(self._accelerator.device):
                with torch.no_grad():
                    self._stored |= {each: self._store(self.batches[each], run) for each in numbers}
                self._compute({each: self._stored[each].responses for each in numbers})
        return self._stored[number]

    def losses(self, number: int, responses: RankedResponses) -> PromptLosses:
        """Return the losses of a micro-batch, computed together with all prompts that they are coupled with.

        Args:
            number: its position in the step.
            responses: the micro-batch.
        """
        if number in self._losses:
            return self._losses[number]
        if not self._coupled:
            values, metrics = self._objective(responses, training=self._training, step=self._counts)
            return PromptLosses(values, metrics, ~torch.isfinite(values.detach()))
        self._compute({number: responses})
        return self._losses[number]

    def is_last(self, number: int) -> bool:
        """Return whether this is the last micro-batch of the step."""
        return number == len(self.batches) - 1

    def culprits(self, number: int, losses: PromptLosses) -> list[dict[str, Tensor]]:
        """Return the rows that make a loss of this micro-batch NaN or infinite: {"rows": [n]} for each micro-batch.

        A loss that couples prompts can pass the NaN of one on to all others. These are the rows whose own log-probs
        aren't finite, if there are any.
        """
        known = {**(self._losses if self._coupled else {}), number: losses}
        batches = [(self.batches[each], found.broken) for each, found in known.items()]
        return [{"rows": batch["rows"].to(broken.device)[broken]} for batch, broken in batches if "rows" in batch]

    def _store(self, batch: Mapping[str, Any], run: Run) -> Stored:
        values: dict[str, Tensor] = {}
        stored_reference: Tensor | None = batch.get("ref_token_logps")
        reference = stored_reference
        aux_losses = []
        for one in passes_of(batch):
            outputs, computed = run(one)
            for name in outputs.names:
                values[name] = values.get(name, 0) + outputs.by_response(name)
            if stored_reference is None and computed is not None:
                reference = computed if reference is None else reference + computed
            aux_losses.append(outputs.aux_loss)
        real = [loss for loss in aux_losses[: batch[REAL_PASSES]] if loss is not None]
        stored = StoredOutputs(values, torch.stack(real).mean() if real else None)
        return Stored(self._to_responses(stored, reference, batch), stored)

    def _compute(self, own: Mapping[int, RankedResponses]) -> None:
        """Compute the losses of these micro-batches, with those of the other processes if they are coupled."""
        parts = [_detached(responses) for responses in own.values()]
        order, mine = _of_all_processes(parts, self._accelerator) if self._coupled else (parts, list(range(len(parts))))
        whole = differentiate(self._objective, join(order), self._training, None if self._coupled else self._counts)
        ends = list(itertools.accumulate(map(len, order), initial=0))
        for number, place in zip(own, mine, strict=True):
            self._losses[number] = whole.part(slice(ends[place], ends[place + 1]), like=order[place])


def join(parts: Sequence[RankedResponses]) -> RankedResponses:
    """Return the prompts of all parts as one batch, with K and T of the widest.

    >>> def ranking(k):
    ...     return RankedResponses(torch.ones(1, k), None, torch.ones(1, k), torch.zeros(1, k), torch.ones(1, k) > 0)
    >>> join([ranking(1), ranking(2)]).logps.tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    joined: dict[str, Tensor | None] = {}
    for name in (each.name for each in fields(RankedResponses)):
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if len(values) < len(parts):
            joined[name] = None
            continue
        inner = torch.tensor([value.shape[1:] for value in values]).amax(dim=0).tolist()
        joined[name] = torch.cat([_widened(value, inner) for value in values])
    return RankedResponses(**joined)  # type: ignore[arg-type]


def _widened(values: Tensor, inner: Sequence[int]) -> Tensor:
    """Pad all dimensions but the first with zeros at the end."""
    missing = [size - own for size, own in zip(inner, values.shape[1:], strict=True)]
    return torch.nn.functional.pad(values, [amount for size in reversed(missing) for amount in (0, size)])


def differentiate(
    objective: Objective, responses: RankedResponses, training: bool, step: Tensor | None = None
) -> PromptLosses:
    """Return the losses of all prompts of a step and, if gradients are enabled, their derivatives.

    Args:
        objective: the losses.
        responses: all prompts that they couple, without a graph.
        training: whether to move the running means.
        step: see `Objective`.
    """
    leaves = {name: value for name in ("logps", "token_logps") if (value := getattr(responses, name)) is not None}
    if torch.is_grad_enabled():
        leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
    values, metrics = objective(responses.replace(**leaves), training=training, step=step)
    derivatives: dict[str, Tensor] = {}
    if values.requires_grad:
        found = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        derivatives = dict(zip(leaves, found, strict=True))
    given = [logps for logps in (responses.logps, responses.ref_logps) if logps is not None]
    unread = ~torch.isfinite(torch.stack(given)).all(dim=2).all(dim=0)
    broken = torch.where(unread.any(), unread, ~torch.isfinite(values.detach()))
    return PromptLosses(values.detach(), metrics, broken, derivatives)


def _detached(responses: RankedResponses) -> RankedResponses:
    changes = {f.name: v.detach() for f in fields(responses) if (v := getattr(responses, f.name)) is not None}
    return responses.replace(**changes)


def _of_all_processes(
    parts: list[RankedResponses], accelerator: Accelerator
) -> tuple[list[RankedResponses], list[int]]:
    """Return the micro-batches of all processes, in the order that one process reads them, and the own ones' places."""
    held = [_moved(part, torch.device("cpu")) for part in parts]
    by_process = gather_object([held]) if accelerator.num_processes > 1 else [held]
    order = [
        (process, number)
        for number in range(max(map(len, by_process)))
        for process, others in enumerate(by_process)
        if number < len(others)
    ]
    mine = [order.index((accelerator.process_index, number)) for number in range(len(parts))]
    return [_moved(by_process[process][number], accelerator.device) for process, number in order], mine


def _moved(responses: RankedResponses, device: torch.device) -> RankedResponses:
    changes = {f.name: v.to(device) for f in fields(responses) if (v := getattr(responses, f.name)) is not None}
    return responses.replace(**changes)


def _prepared(batches: Sequence[Mapping[str, Any]], accelerator: Accelerator) -> list[dict[str, Any]]:
    """Return the micro-batches with their numbers, split into equally many passes on all processes."""
    counts = torch.tensor([len(passes_of(batch)) for batch in batches], device=accelerator.device)
    if accelerator.num_processes > 1 and any(PASSES in batch for batch in batches):
        most = accelerator.gather(counts[None]).amax(dim=0)
    else:
        most = counts
    prepared = []
    for number, (batch, real, all_passes) in enumerate(zip(batches, counts.tolist(), most.tolist(), strict=True)):
        split = with_passes(batch, all_passes) if PASSES in batch else batch
        prepared.append({**split, NUMBER: number, REAL_PASSES: real})
    return prepared


@contextlib.contextmanager
def _random_numbers_put_back(device: torch.device) -> Iterator[None]:
    devices = [] if device.type == "cpu" else [device]
    kind = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.random.fork_rng(devices=devices, **kind):
        yield
