"""Bring a dataset of any accepted form to ranked rows (see `ranked_row.py`).

All rows are checked here, before anything expensive; each fault is reported with its row and column.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Literal

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from .data_error import DataError, FaultReason
from .map_rows import map_rows
from .padded_columns import left_out_nulls, padded_columns
from .reads import Reads
from .row_reading.column_form import Row
from .row_reading.form_selection import PASSED_ON, Reading, read_columns
from .row_reading.ranked_row import to_ranked

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 1000  # of a stream, a tenth


def format_dataset(
    dataset: Dataset | IterableDataset,
    *,
    name: str,
    invalid_rows: Literal["error", "drop"] = "error",
    reads: Reads = Reads(),  # noqa: B008  it is frozen
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with each row as `to_ranked` returns it, plus its number in `row`, and no other columns.

    `row` (int64) is the row's place in `dataset`. It stays with the row when others are dropped or shuffled, and
    messages name it. Messages, tools and template arguments are stored as JSON, so rows may have different keys.

    Args:
        dataset: has the columns of one of the forms in `trl_dpo_ext.data.forms`, or is an export that one of
            `trl_dpo_ext.data.forms.exports` knows. Other columns are ignored unless they seem to order the responses.
        name: the dataset's name, for messages ("train").
        invalid_rows: "error" raises one error that lists the bad rows (a streamed dataset: at the first bad row);
            "drop" leaves them out and logs how many and why.
        reads: what the losses read, which decides the rows that are accepted and the columns that are kept.
        num_proc: processes for `Dataset.map`; a streamed dataset uses none.

    Raises:
        DataError: missing columns, images, bad rows with `invalid_rows="error"`, or no usable row at all.
    """
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows={invalid_rows!r}, expected 'error' or 'drop'.")
    dataset = dataset.with_format(None)  # rows as Python objects, whatever format the dataset was given
    streamed = isinstance(dataset, IterableDataset)
    reading = reading_of(dataset, name)
    columns = _columns(dataset)

    padded = padded_columns(dataset)
    if isinstance(dataset, Dataset) and (nulls := left_out_nulls(dataset)):
        logger.warning(
            f"{name} dataset: these keys of tools or tool calls are None in some rows and are left out there, because "
            f"the dataset also holds None where a row lacks a key: {', '.join(nulls)}. If a None is meant, load the "
            "rows from a JSON file, or give tools and arguments as JSON text."
        )
    read = partial(to_ranked, name=name, reads=reads, reading=reading)
    conversational = _is_conversational(dataset, read, strict=streamed and invalid_rows == "error")
    features = _features(reading, columns, reads, conversational)
    convert = partial(
        _convert, read=partial(read, conversational=conversational, padded=padded), columns=list(features)
    )
    return map_rows(
        dataset,
        convert,
        features,
        name=name,
        columns=columns,
        invalid_rows=invalid_rows,
        doing="Formatting",
        num_proc=num_proc,
    )


def reading_of(dataset: Dataset | IterableDataset, name: str) -> Reading:
    """Return how the rows of a dataset are read.

    Args:
        dataset: rows as Python objects (`with_format(None)`).
        name: the dataset's name, for messages ("train").

    Raises:
        DataError: it has no rows, or its columns don't hold exactly one known form.
    """
    columns = _columns(dataset)
    if not columns or (isinstance(dataset, Dataset) and len(dataset) == 0):
        raise DataError(f"{name} dataset: it has no rows.", FaultReason.NO_ROWS)
    return read_columns(columns, _first(dataset), name=name)


def _columns(dataset: Dataset | IterableDataset) -> list[str]:
    return dataset.column_names or list(next(iter(dataset), {}))


def _first(dataset: Dataset | IterableDataset) -> list[Row]:
    if isinstance(dataset, Dataset):
        return list(dataset.select(range(min(_SAMPLED_ROWS, len(dataset)))))
    return list(dataset.take(_SAMPLED_ROWS // 10))


def _is_conversational(dataset: Dataset | IterableDataset, read: Callable[..., Row], strict: bool) -> bool:
    """Tell from the first good row whether the dataset holds messages; `strict` raises at a bad one before it."""
    for index, row in enumerate(dataset):
        try:
            return isinstance(read(row, index=index)["prompt"], list)
        except DataError:
            if strict:
                raise
    return False


def _features(reading: Reading, columns: Collection[str], reads: Reads, conversational: bool) -> Features:
    text = List(Json()) if conversational else Value("string")
    features = {"prompt": text, "completions": List(text), "ranks": List(Value("int64"))}
    found = reading.columns(columns)
    if reading.form.has_scores(found):
        features["scores"] = List(Value("float64"))
    if reads.labels or reading.form.labels_column in found:
        features["labels"] = List(Value("bool"))
    features.update({column: Json() for column in PASSED_ON if column in found})
    if reads.reference_scores and "reference_scores" in found:
        features["reference_scores"] = List(Value("float64"))
    if reads.weight and "weight" in found:
        features["weight"] = Value("float64")
    return Features({**features, "row": Value("int64")})


def _convert(row: Row, index: int, read: Callable[..., Row], columns: list[str]) -> Row:
    ranked = read(row, index=index)
    return {**{column: ranked.get(column) for column in columns}, "row": index}
