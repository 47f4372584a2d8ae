"""What vLLM accepts, without importing it."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank


def lora_rank(rank: int) -> int | None:
    """Return the smallest `max_lora_rank` that holds an adapter of this rank, or None if vLLM has none.

    >>> lora_rank(12), lora_rank(513)
    (16, None)
    """
    return next((allowed for allowed in LORA_RANKS if allowed >= rank), None)
