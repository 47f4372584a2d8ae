"""The undocumented PEFT names used here. tests/compat/test_peft.py says what breaks without each."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight

__all__ = [
    "BaseTunerLayer",
    "LoraLayer",
    "LoraLinear",
    "TrainableTokensLayer",
    "adapters_are_disabled",
    "adapters_of_layer",
    "dequantize_module_weight",
]


def adapters_are_disabled(model: Any) -> bool:
    """Whether a `PeftModel` runs without its adapters, inside `disable_adapter()`."""
    return bool(model._adapters_disabled)


def adapters_of_layer(layer: Any) -> set[str]:
    """Return the names of the adapters that have weights in a PEFT layer."""
    return set(layer._get_available_adapters())
