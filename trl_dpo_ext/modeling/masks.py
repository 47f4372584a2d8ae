"""Build the attention mask of a shared or packed row in the form that the model's attention implementation takes.

The mask is quadratic in the row length. It is built once per batch, on the model's device, and used for both policy and
reference. transformers' registry of mask functions decides its form: bool for SDPA, additive for eager, a BlockMask for
FlexAttention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface, PreTrainedConfig

from .._compat.transformers import attention_of

_ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")

MODEL_INPUTS = ("input_ids", "position_ids", "labels", "shift_labels", "token_mask")
"""Tensors of a layout that go to the model unchanged. `model_inputs` adds the attention mask."""


class UnsupportedAttentionError(ValueError):
    """The attention implementation takes no custom mask, or a mask can't describe some layers of the model."""


def takes_masks(config: PreTrainedConfig) -> bool:
    """Return whether the model's attention implementation takes a custom mask (FlashAttention doesn't)."""
    implementation = attention_of(config)
    return "flash" not in implementation and implementation in AttentionMaskInterface()


def layers_follow_masks(config: PreTrainedConfig) -> bool:
    """Return whether, according to the config, a mask can describe the attention of all layers."""
    try:
        _layer_kinds(config.get_text_config())
    except UnsupportedAttentionError:
        return False
    return True


def model_inputs(config: PreTrainedConfig, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Return the model's keyword arguments for a batch of any layout.

    Args:
        config: the model's config.
        batch: the result of a layout, on the model's device; other keys are ignored.
        dtype: dtype of the model's embeddings, for an additive mask.

    Returns:
        Keyword arguments, the same for policy and reference. If the attention takes no mask, `position_ids` alone
        separate the sequences of a packed row, as transformers documents.

    Raises:
        UnsupportedAttentionError: see `attention_mask`.
    """
    inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    if "attention_mask" in batch:
        inputs["attention_mask"] = batch["attention_mask"]
    elif takes_masks(config):
        inputs["attention_mask"] = attention_mask(config, batch, dtype)
    return inputs


def attention_mask(config: PreTrainedConfig, batch: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Build the `attention_mask` argument of a model for a batch of `shared_layout`.

    A token attends to its group's prefix and to its own segment, up to itself. Sliding windows and chunks are measured
    in positions, not columns, because the columns of a shared row continue from one response to the next.

    Args:
        config: the model's config; for a multimodal model, the text config is used.
        batch: `position_ids`, `segment_ids` and `prefix_ids` of `shared_layout`, [R, L], on the model's device.
        dtype: dtype of the model's embeddings, for an additive mask.

    Returns:
        One mask [R, 1, L, L] (bool, additive, or a BlockMask). For models with several layer types, a dict from layer
        type to mask.

    Raises:
        UnsupportedAttentionError: the attention is FlashAttention or has no registered mask function, or some layers
            aren't attention (recurrent, convolution).
    """
    config = config.get_text_config()
    if not takes_masks(config):
        raise UnsupportedAttentionError(
            f"attn_implementation={attention_of(config)!r} takes no custom mask. Use 'sdpa' or, on a GPU, "
            "'flex_attention'."
        )
    kinds = _layer_kinds(config)
    positions, segments, prefixes = batch["position_ids"], batch["segment_ids"], batch["prefix_ids"]
    rows, length = positions.shape

    def build(attention: str) -> Any:
        window: int = getattr(config, "sliding_window", None) or 0
        chunk: int = getattr(config, "attention_chunk_size", None) or 0

        def allowed(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            visible = (segments[b, q] == segments[b, kv]) | (prefixes[b, q] == segments[b, kv])
            visible = visible & (kv <= q)
            if attention == "sliding_attention":
                visible = visible & (positions[b, q] - positions[b, kv] < window)
            elif attention == "chunked_attention":
                visible = visible & (positions[b, q] // chunk == positions[b, kv] // chunk)
            return visible

        return AttentionMaskInterface()[attention_of(config)](
            batch_size=rows,
            q_length=length,
            kv_length=length,
            mask_function=allowed,
            allow_is_causal_skip=False,
            dtype=dtype,
            device=positions.device,
            config=config,
        )

    return build(kinds) if isinstance(kinds, str) else {kind: build(kind) for kind in kinds}


def _layer_kinds(config: PreTrainedConfig) -> str | list[str]:
    """Return the layer type of a uniform model, or the layer types of a model that takes one mask per type.

    The checks run in the order of transformers' `create_masks_for_generate`, which every model follows.
    """
    for name, value in config.to_dict().items():
        # GPT-Neo and Doge apply their own window, measured in columns; a mask can't override it.
        if name.endswith("window_size") and value:
            raise UnsupportedAttentionError(
                f"The model applies its own attention window ({name}={value}), measured in columns."
            )
    if getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False):
        # The error is small on short rows, so the self-check could miss it in bfloat16.
        raise UnsupportedAttentionError("ALiBi biases attention by column distance, not by position.")
    if (layer_types := getattr(config, "layer_types", None)) is not None:
        if unknown := sorted(set(layer_types) - set(_ATTENTIONS)):
            raise UnsupportedAttentionError(f"Layers of type {', '.join(unknown)} take no attention mask of this form.")
        return sorted(set(layer_types))
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "chunked_attention"
    return "full_attention"
