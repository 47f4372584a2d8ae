"""From any accepted dataset to batches: one form, tokens, rows of the model."""

from .format import format_dataset
from .load import load_splits
from .rows import DataError, to_ranked
from .tokenize import tokenize_dataset

__all__ = ["DataError", "format_dataset", "load_splits", "to_ranked", "tokenize_dataset"]
