"""Compute per-token log-probs from token ids: row layouts, attention masks, the LM head, the self-check."""
