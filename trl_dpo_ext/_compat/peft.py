"""Undocumented PEFT names. tests/compat/test_peft.py says what breaks without each."""

from __future__ import annotations

import copy
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
    "converted_targets",
    "dequantize_module_weight",
]


def adapters_are_disabled(model: Any) -> bool:
    """Return whether a `PeftModel` currently runs without its adapters (inside `disable_adapter()`)."""
    return bool(model._adapters_disabled)


def adapters_of_layer(layer: Any) -> set[str]:
    """Return the names of the adapters that have weights in a PEFT layer."""
    return set(layer._get_available_adapters())


def converted_targets(config: Any, model: Any) -> Any:
    """Return a copy of a LoRA config with the targets that PEFT makes of it for a model.

    transformers 5 keeps a layer's experts in fused parameters. PEFT takes their former names as `target_modules`, and
    makes `target_parameters` of them.

    Args:
        config: of the adapter.
        model: a transformers model, which may be on the meta device.

    Raises:
        ValueError: only a part of what is fused is named.
    """
    config = copy.deepcopy(config)
    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_config_for_transformers,
            get_model_conversion_mapping,
        )
    except ImportError:  # a PEFT that converts nothing
        return config
    convert_peft_config_for_transformers(config, model=model, conversions=get_model_conversion_mapping(model))
    return config
