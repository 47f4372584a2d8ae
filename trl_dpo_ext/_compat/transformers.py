"""Names of transformers that its documentation doesn't promise."""

from __future__ import annotations

from typing import Any


def attention_of(config: Any) -> str:
    """Return the attention implementation that a model runs with: "sdpa", "eager", "flash_attention_2", ...

    Args:
        config: a model's config; of a multimodal model, its text part counts.
    """
    implementation: str = config.get_text_config()._attn_implementation
    return implementation


def loaded_from(config: Any) -> str:
    """Return the Hub id or folder that a model was loaded from; "" for one that was made in memory."""
    return getattr(config, "_name_or_path", "") or ""
