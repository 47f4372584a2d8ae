"""Weights that train beside an adapter, such as biases. They belong to the base model, and would move the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .frozen_adapter import TRAINED


def trained_beside(policy: Any) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of a PEFT model that are not part of the trained adapter, by name."""
    return {
        name: parameter
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and TRAINED not in name.split(".")
    }


def saved_with_adapter(policy: Any, name: str) -> bool:
    """Return whether PEFT saves a parameter beside the adapter: LoRA's `bias: all` and `bias: lora_only`."""
    trained = getattr(policy.peft_config[TRAINED], "bias", "none")
    if not name.endswith(".bias"):
        return False
    return trained == "all" or (trained == "lora_only" and name.endswith(".base_layer.bias"))


class WeightsBesideAdapter:
    """Copies of the weights that train beside an adapter, taken before training.

    Args:
        policy: a PEFT model, not sharded.

    Attributes:
        names: of the weights.
    """

    def __init__(self, policy: Any) -> None:
        found = {name: p for name, p in trained_beside(policy).items() if saved_with_adapter(policy, name)}
        self.names = frozenset(found)
        self._copies: list[tuple[nn.Parameter, Tensor]] = [(p, p.detach().clone()) for p in found.values()]

    @contextmanager
    def as_they_were(self) -> Iterator[None]:
        """While open, the model has these weights as they were before training."""
        trained = [parameter.data for parameter, _ in self._copies]
        for parameter, copy in self._copies:
            parameter.data = copy
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._copies, trained, strict=True):
                parameter.data = data
