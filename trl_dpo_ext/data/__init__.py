"""From a dataset of any accepted form to batches: ranked rows, tokens, model inputs."""

from . import converters  # noqa: F401  registers the built-in converters
from .column_names import map_columns
from .convert import convert_dataset
from .converter_registry import get_converter, list_converters, register_converter
from .data_error import DataError, FaultReason
from .format import format_dataset
from .loading.dataset_loading import load_splits
from .mixture import mix_datasets
from .reads import EVERY_ROW, Reads
from .row_reading.ranked_row import to_ranked
from .tokenize import tokenize_dataset

__all__ = [
    "EVERY_ROW",
    "DataError",
    "FaultReason",
    "Reads",
    "convert_dataset",
    "format_dataset",
    "get_converter",
    "list_converters",
    "load_splits",
    "map_columns",
    "mix_datasets",
    "register_converter",
    "to_ranked",
    "tokenize_dataset",
]
