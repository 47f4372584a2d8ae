"""Load CSV and JSON files as they are written: readers guess types, and turn texts into nulls, numbers and dates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from datasets import BuilderConfig, Dataset, Features, Json, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig

from ..data_error import DataError, FaultReason
from .unsafe_files import csv_header, repeated_column, unsafe_json

_SAMPLED_ROWS = 1000


def load_exactly(path: str, *, streaming: bool = False, **options: Any) -> Any:
    """Load a dataset like `datasets.load_dataset`, but with the texts of CSV and JSON files unchanged.

    In CSV every cell is text: "NA", "None", "007" and "True" stay as they are, and an empty cell is "". In JSON, texts
    that look like dates stay texts, and nested values keep their own keys and nulls.

    Args:
        path: as `load_dataset` takes it.
        streaming: read rows only as they are used.
        options: further arguments of `load_dataset`.

    Raises:
        DataError: a local file that its reader would crash on or misread; the message names file and line.
    """
    config = load_dataset_builder(path, **options).config
    if isinstance(config, JsonConfig):
        _check_files(config, unsafe_json)
    if isinstance(config, CsvConfig):
        _check_files(config, repeated_column)
        text = Features(dict.fromkeys(_csv_columns(path, config, options), Value("string")))
        dataset = load_dataset(path, streaming=streaming, features=text or None, na_filter=False, **options)
        if streaming:
            next(iter(next(iter(dataset.values()))), None)  # a broken file raises here, where its error is explained
        return dataset
    # Types are guessed from the first chunk. A later one with a column of nothing but dates is read as dates, or fails.
    later = isinstance(config, JsonConfig) and not _is_one_chunk(config)
    dataset = load_dataset(path, streaming=streaming or later, **options)
    if isinstance(config, JsonConfig):
        first = next(iter(dataset.values()))
        # A stream of one JSON array doesn't know its features before it is read.
        guessed = first.features or Dataset.from_list(list(first.take(_SAMPLED_ROWS))).features
        exact = Features({name: Json() if _is_guess(kind, texts=later) else kind for name, kind in guessed.items()})
        if exact != guessed or later > streaming:
            return load_dataset(path, streaming=streaming, features=exact, **options)
    return dataset


def _csv_columns(path: str, config: CsvConfig, options: dict[str, Any]) -> list[str]:
    """Return the names of the columns, from the header alone: guessing types fails at numbers of more than 64 bits."""
    files = [Path(file) for part in (config.data_files or {}).values() for file in part]
    if local := next(filter(Path.is_file, files), None):
        return csv_header(local)
    rows = next(iter(load_dataset(path, streaming=True, **options).values()))
    return list(next(iter(rows), {}))


def _check_files(config: BuilderConfig, fault_of: Callable[[Path], str | None]) -> None:
    """Refuse a file with a fault. Files of the Hub aren't on this machine yet, and are not checked."""
    files = [Path(file) for part in (config.data_files or {}).values() for file in part]
    for file in filter(Path.is_file, files):
        if fault := fault_of(file):
            raise DataError(f"{file}, {fault}", FaultReason.UNREADABLE_FILE)


def _is_one_chunk(config: JsonConfig) -> bool:
    """Return whether the reader takes the whole dataset at once: one uncompressed file of this machine, of a chunk."""
    files = [Path(file) for part in (config.data_files or {}).values() for file in part]
    plain = [file for file in files if file.suffix in (".json", ".jsonl") and file.is_file()]
    return len(files) == len(plain) == 1 and plain[0].stat().st_size < config.chunksize


def _is_guess(feature: Any, *, texts: bool) -> bool:
    """Return whether a JSON column has a type that changes what the file says: dates, or keys of other rows as null.

    With `texts`, so do texts and columns without a value: rows that come later may be read as dates.
    """
    return _guesses(Features({"column": feature}).arrow_schema.field("column").type, texts)


def _guesses(kind: pyarrow.DataType, texts: bool) -> bool:
    types = pyarrow.types
    if texts and (types.is_string(kind) or types.is_null(kind)):
        return True
    inner = (kind.field(index).type for index in range(kind.num_fields))
    return types.is_temporal(kind) or types.is_struct(kind) or any(_guesses(part, texts) for part in inner)
