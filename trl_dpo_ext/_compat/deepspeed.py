"""What DeepSpeed does to a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def full_size(weight: nn.Parameter) -> int:
    """Return how many values a weight has over all processes.

    ZeRO-3 leaves each parameter empty between forwards, so `numel()` is 0, and keeps the true number in `ds_numel`.
    """
    return int(getattr(weight, "ds_numel", weight.numel()))


def is_partitioned(weight: Tensor) -> bool:
    """Return whether ZeRO-3 keeps only this process's part of a weight between forwards."""
    return hasattr(weight, "ds_id")


def gathered(weights: Iterable[Tensor], *, to_write: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which every process holds these weights whole. All processes must open it.

    Args:
        weights: those that ZeRO-3 doesn't split are left alone.
        to_write: keep what the first process writes into them.
    """
    split = [weight for weight in weights if is_partitioned(weight)]
    if not split:
        return contextlib.nullcontext()
    from deepspeed import zero

    whole: contextlib.AbstractContextManager[Any] = zero.GatheredParameters(
        split, modifier_rank=0 if to_write else None
    )
    return whole


def own_part(weight: Tensor) -> Tensor:
    """Return the part of a weight that this process keeps; it shares memory with the weight."""
    part: Tensor = getattr(weight, "ds_tensor", weight)
    return part


def call_as_forward(module: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    """Run a function in place of a module's forward, and return what it returns.

    ZeRO-3 gathers the weights of a module when the module is called, and again in the backward pass until their
    gradients are there. A function that reads the weights without calling the module gets empty ones.

    Args:
        module: owns the weights.
        function: takes `inputs` and returns a tensor, or a tuple of tensors and None.
        *inputs: tensors.
    """
    own = module.__dict__.get("forward")
    module.forward = function
    try:
        return module(*inputs)
    finally:
        del module.forward
        if own is not None:
            module.forward = own
