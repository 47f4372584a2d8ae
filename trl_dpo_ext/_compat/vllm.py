"""Values that vLLM accepts, without importing vLLM."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # valid values of max_lora_rank


def lora_rank(rank: int) -> int | None:
    """Return the smallest valid `max_lora_rank` for an adapter of this rank; None if the rank is too large for vLLM.

    >>> lora_rank(12), lora_rank(513)
    (16, None)
    """
    return next((allowed for allowed in LORA_RANKS if allowed >= rank), None)
