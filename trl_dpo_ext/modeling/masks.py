"""The attention mask of a shared or packed row, in the form the model's attention takes.

The mask is quadratic in the length, so it is built here, on the model's device, once a batch, and used for the policy
and the reference alike. Which form it has (bool for SDPA, additive for eager, a BlockMask for FlexAttention) is left to
transformers' registry of mask functions.
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
"""What a layout hands to the model as it is; the attention mask is made by `model_inputs`."""


class UnsupportedAttentionError(ValueError):
    """The model's attention takes no custom mask, or its layers are not of a kind a mask can describe."""


def takes_masks(config: PreTrainedConfig) -> bool:
    """Say whether the model's attention takes a mask of any form (FlashAttention takes none)."""
    implementation = attention_of(config)
    return "flash" not in implementation and implementation in AttentionMaskInterface()


def follows_masks(config: PreTrainedConfig) -> bool:
    """Say whether all layers are of a kind that a mask can describe, as far as the config tells."""
    try:
        _kinds(config.get_text_config())
    except UnsupportedAttentionError:
        return False
    return True


def model_inputs(config: PreTrainedConfig, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Pick and build what a model is called with, for a batch of any layout.

    Args:
        config: the model's config.
        batch: what a layout returned (more may be in it), on the model's device.
        dtype: of the model's embeddings, for an additive mask.

    Returns:
        Keyword arguments of the model, the same for policy and reference. Where the attention takes no masks, the
        positions alone tell the sequences of a packed row apart, as transformers documents.

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
    """Build what a model takes as `attention_mask` for a batch of `shared_layout`.

    A token sees the prefix of its own group and its own segment, up to itself; sliding windows and chunks are counted
    in positions, not in columns, since the columns of a shared row run on from one response to the next.

    Args:
        config: the model's config; of a multimodal model, its text part counts.
        batch: `position_ids`, `segment_ids` and `prefix_ids` of `shared_layout`, [R, L] on the model's device.
        dtype: of the model's embeddings, for an additive mask.

    Returns:
        One mask [R, 1, L, L] (bool, additive, or a BlockMask), or for models with several kinds of layers a dict of
        them by the name of the kind.

    Raises:
        UnsupportedAttentionError: FlashAttention, an attention nobody registered a mask function for, or layers that
            are not attention (recurrent, convolution).
    """
    config = config.get_text_config()
    if not takes_masks(config):
        raise UnsupportedAttentionError(
            f"attn_implementation={attention_of(config)!r} takes no custom mask; 'sdpa' and, on a GPU, "
            "'flex_attention' do."
        )
    kinds = _kinds(config)
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


def _kinds(config: PreTrainedConfig) -> str | list[str]:
    """Return the kind of all layers, or the kinds of a model that takes one mask for each.

    The order of the questions is that of transformers' `create_masks_for_generate`, which every model follows.
    """
    for name, value in config.to_dict().items():
        # GPT-Neo and Doge cut their attention themselves, by columns, where no mask can tell them better.
        if name.endswith("window_size") and value:
            raise UnsupportedAttentionError(f"The model cuts its attention itself ({name}={value}), counting columns.")
    if getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False):
        # Over a short row the error is small, and in bfloat16 the self-check could miss it.
        raise UnsupportedAttentionError("ALiBi biases the attention by columns, not by positions.")
    if (layer_types := getattr(config, "layer_types", None)) is not None:
        if unknown := sorted(set(layer_types) - set(_ATTENTIONS)):
            raise UnsupportedAttentionError(f"Layers of the kind {', '.join(unknown)} take no mask of this form.")
        return sorted(set(layer_types))
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "chunked_attention"
    return "full_attention"
