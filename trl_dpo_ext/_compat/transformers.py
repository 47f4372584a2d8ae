"""Undocumented transformers names. tests/compat/test_transformers.py says what breaks without each."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

__all__ = [
    "Conv1D",
    "GradientCheckpointingLayer",
    "attention_of",
    "enable_checkpointing",
    "loaded_from",
    "modules_kept_unquantized",
    "set_attention",
    "should_convert_module",
]


def modules_kept_unquantized(model: PreTrainedModel, skipped: list[str] | None) -> list[str]:
    """Return the modules that quantization skips, as names or parts of names for `should_convert_module`.

    Args:
        model: a model that isn't quantized yet.
        skipped: modules excluded by the quantization config (`llm_int8_skip_modules`).
    """
    in_float32: Any = model._keep_in_fp32_modules
    kept: list[str] = HfQuantizer.get_modules_to_not_convert(model, skipped, in_float32)
    return kept


def attention_of(config: Any) -> str:
    """Return a model's attention implementation: "sdpa", "eager", "flash_attention_2", ...

    Args:
        config: the model's config; for a multimodal model, the text config is used.
    """
    implementation: str = config.get_text_config()._attn_implementation
    return implementation


def enable_checkpointing(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Turn gradient checkpointing on, under its current name: transformers 5.23 calls it activation checkpointing.

    Args:
        model: in training mode.
        options: of `torch.utils.checkpoint.checkpoint`.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def set_attention(config: PreTrainedConfig, name: str) -> None:
    """Set a config's attention implementation without checking that its kernels are installed."""
    config.get_text_config()._attn_implementation = name


def loaded_from(config: Any) -> str:
    """Return the Hub id or folder that a model was loaded from; "" if it was created in memory."""
    return getattr(config, "_name_or_path", "") or ""
