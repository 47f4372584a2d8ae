"""From token ids to per-token log-probs: row layouts, attention masks, the language-model head, the self-check."""
