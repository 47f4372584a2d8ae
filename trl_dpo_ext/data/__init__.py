"""From any accepted dataset to batches: one form, tokens, rows of the model."""

from .converters import convert_dataset, get_converter, list_converters, register_converter
from .format import format_dataset
from .load import load_splits
from .rows import DataError, to_ranked
from .tokenize import tokenize_dataset

__all__ = [
    "DataError",
    "convert_dataset",
    "format_dataset",
    "get_converter",
    "list_converters",
    "load_splits",
    "register_converter",
    "to_ranked",
    "tokenize_dataset",
]
