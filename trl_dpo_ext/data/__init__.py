"""From any accepted dataset to batches: one form, tokens, rows of the model."""

from .format import DataError, format_dataset, to_ranked
from .load import load_splits
from .tokenize import tokenize_dataset

__all__ = ["DataError", "format_dataset", "load_splits", "to_ranked", "tokenize_dataset"]
