"""From any accepted dataset to batches: one form, tokens, rows of the model."""
