"""Map the names of a dataset's columns to those of an accepted form, as a recipe's `columns` says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from datasets import Dataset, IterableDataset

from ..registry import did_you_mean
from .data_error import DataError, FaultReason
from .row_reading.column_form import Row


def map_columns(
    dataset: Dataset | IterableDataset, names: Mapping[str, str | None], *, name: str
) -> Dataset | IterableDataset:
    """Return the dataset with other column names; nothing else is changed.

    Args:
        dataset: may stream.
        names: from a column of the dataset to its new name, or to None to leave it out.
        name: the dataset's name, for messages ("train").

    Raises:
        DataError: there is no such column, or two columns would have one name.

    Example:
        >>> rows = Dataset.from_list([{"question": "1+1=", "a": "2", "b": "3", "row_id": 7}])
        >>> map_columns(rows, {"question": "prompt", "a": "chosen", "row_id": None}, name="train").column_names
        ['prompt', 'chosen', 'b']
    """
    columns = dataset.column_names or list(next(iter(dataset), {}))
    for column in names:
        if column not in columns:
            raise DataError(
                f"{name} dataset: columns maps {column!r}, but there is no such column.{did_you_mean(column, columns)} "
                f"It has: {', '.join(columns)}.",
                FaultReason.MISSING_COLUMNS,
            )
    new = {column: names.get(column, column) for column in columns}
    kept = [target for target in new.values() if target]
    for target in kept:
        if kept.count(target) > 1:
            clashing = [column for column in columns if new[column] == target]
            raise DataError(
                f"{name} dataset: columns gives {' and '.join(map(repr, clashing))} the one name {target!r}. Leave one "
                f"out: columns: {{{clashing[-1]}: null}}.",
                FaultReason.TWO_FORMS,
            )
    left_out = [column for column, target in new.items() if not target]
    renamed = {column: target for column, target in new.items() if target and target != column}
    if dataset.column_names is None:  # a stream that doesn't know its columns
        return dataset.map(partial(_renamed, names=new), remove_columns=columns)
    return dataset.remove_columns(left_out).rename_columns(renamed)


def _renamed(row: Row, names: Mapping[str, str | None]) -> Row:
    return {target: row[column] for column, target in names.items() if target}


def parse_column_names(texts: list[str]) -> dict[str, str | None]:
    """Return the names that the command line gives as `question=prompt`, or `note=` to leave a column out.

    Raises:
        ValueError: one has another form.

    Example:
        >>> parse_column_names(["question=prompt", "note="])
        {'question': 'prompt', 'note': None}
    """
    for text in texts:
        if "=" not in text or not text.partition("=")[0]:
            raise ValueError(f"--columns {text}: expected COLUMN=NAME, for example question=prompt.")
    return {column: name or None for column, _, name in (text.partition("=") for text in texts)}
