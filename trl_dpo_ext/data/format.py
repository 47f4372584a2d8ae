"""Bring a dataset of any accepted form to ranked rows (see `ranked_row.py`).

All rows are checked here, before anything expensive; each fault is reported with its row and column.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from .data_error import DataError, FaultReason
from .map_rows import map_rows
from .row_reading.column_form import ColumnForm
from .row_reading.form_selection import check_columns
from .row_reading.ranked_row import to_ranked

_PASSED_ON = ("tools", "chat_template_kwargs")


def format_dataset(
    dataset: Dataset | IterableDataset,
    *,
    name: str,
    invalid_rows: Literal["error", "drop"] = "error",
    reads_ties: bool = False,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with each row as `to_ranked` returns it, plus its number in `row`, and no other columns.

    `row` (int64) is the row's place in `dataset`. It stays with the row when others are dropped or shuffled, and
    messages name it. Messages, tools and template arguments are stored as JSON, so rows may have different keys.

    Args:
        dataset: has the columns of one of the forms in `trl_dpo_ext.data.forms`; others are ignored.
        name: the dataset's name, for messages ("train").
        invalid_rows: "error" raises one error that lists the bad rows (a streamed dataset: at the first bad row);
            "drop" leaves them out and logs how many and why.
        reads_ties: accept rows whose responses are all equally good.
        num_proc: processes for `Dataset.map`; a streamed dataset uses none.

    Raises:
        DataError: missing columns, images, bad rows with `invalid_rows="error"`, or no usable row at all.
    """
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows={invalid_rows!r}, expected 'error' or 'drop'.")
    dataset = dataset.with_format(None)  # rows as Python objects, whatever format the dataset was given
    streamed = isinstance(dataset, IterableDataset)
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns or (not streamed and len(dataset) == 0):
        raise DataError(f"{name} dataset: it has no rows.", FaultReason.NO_ROWS)
    form = check_columns(columns, name=name)

    padded = padded_columns(dataset)
    conversational = _is_conversational(dataset, name, reads_ties, strict=streamed and invalid_rows == "error")
    features = _features(form, columns, conversational)
    convert = partial(
        _convert,
        name=name,
        reads_ties=reads_ties,
        conversational=conversational,
        padded=padded,
        columns=list(features),
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


def padded_columns(dataset: Dataset | IterableDataset) -> set[str]:
    """Return the columns of structs, in which Arrow stores None for keys that only other rows have.

    A JSON column, and a stream from a Python generator, keep each row's own keys.
    """
    features = dataset.features or {}
    return {name for name, feature in features.items() if _is_padded(feature)}


def _is_padded(feature: Any) -> bool:
    if isinstance(feature, dict):
        return True
    inner = getattr(feature, "feature", None)  # of a List
    return inner is not None and _is_padded(inner)


def _is_conversational(dataset: Dataset | IterableDataset, name: str, reads_ties: bool, strict: bool) -> bool:
    """Tell from the first good row whether the dataset holds messages; `strict` raises at a bad one before it."""
    for index, row in enumerate(dataset):
        try:
            return isinstance(to_ranked(row, index=index, name=name, reads_ties=reads_ties)["prompt"], list)
        except DataError:
            if strict:
                raise
    return False


def _features(form: ColumnForm, columns: Collection[str], conversational: bool) -> Features:
    text = List(Json()) if conversational else Value("string")
    features = {"prompt": text, "completions": List(text), "ranks": List(Value("int64"))}
    if form.scores_column in columns:
        features["scores"] = List(Value("float64"))
    features.update({column: Json() for column in _PASSED_ON if column in columns})
    return Features({**features, "row": Value("int64")})


def _convert(
    row: dict[str, Any],
    index: int,
    name: str,
    reads_ties: bool,
    conversational: bool,
    padded: Collection[str],
    columns: list[str],
) -> dict[str, Any]:
    ranked = to_ranked(row, index=index, name=name, reads_ties=reads_ties, conversational=conversational, padded=padded)
    return {**{column: ranked.get(column) for column in columns}, "row": index}
