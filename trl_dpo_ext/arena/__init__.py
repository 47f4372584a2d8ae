"""The arena: every registered loss in a small world with a known truth, tuned alike, over seeds, with intervals."""
