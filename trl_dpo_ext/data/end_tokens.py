"""The tokens that end a response, for training data, the linter and sampling alike."""

from __future__ import annotations

from typing import Any


def end_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Return the token ids that end a response: those of the model's generation config, else the tokenizer's EOS.

    Args:
        tokenizer: a tokenizer of transformers.
        generation_config: the model's, or None.
    """
    ids = getattr(generation_config, "eos_token_id", None)
    if ids is None:
        ids = tokenizer.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
