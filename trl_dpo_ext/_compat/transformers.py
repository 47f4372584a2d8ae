"""The undocumented transformers names used here. tests/compat/test_transformers.py says what breaks without each."""

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
    "loaded_from",
    "modules_kept_unquantized",
    "set_attention",
    "should_convert_module",
]


def modules_kept_unquantized(model: PreTrainedModel, skipped: list[str] | None) -> list[str]:
    """Return the modules that quantization leaves alone, as names or parts of names for `should_convert_module`.

    Args:
        model: not quantized yet.
        skipped: modules that the quantization config names (`llm_int8_skip_modules`).
    """
    in_float32: Any = model._keep_in_fp32_modules
    kept: list[str] = HfQuantizer.get_modules_to_not_convert(model, skipped, in_float32)
    return kept


def attention_of(config: Any) -> str:
    """Return the attention implementation that a model runs with: "sdpa", "eager", "flash_attention_2", ...

    Args:
        config: a model's config; of a multimodal model, its text part counts.
    """
    implementation: str = config.get_text_config()._attn_implementation
    return implementation


def set_attention(config: PreTrainedConfig, name: str) -> None:
    """Change a config's attention implementation, without the check that the kernels are installed."""
    config.get_text_config()._attn_implementation = name


def loaded_from(config: Any) -> str:
    """Return the Hub id or folder that a model was loaded from; "" for one that was made in memory."""
    return getattr(config, "_name_or_path", "") or ""
