"""Convert the rows of a public dataset to an accepted form, with a named converter.

A recipe names one with `dataset_converter: nectar`. `ranked_row.py` then checks the result like any other data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from datasets import Dataset, IterableDataset

from ..registry import did_you_mean
from .converter_registry import Converter, Row, get_converter, list_converters
from .data_error import DataError, FaultReason

logger = logging.getLogger(__name__)


def convert_dataset(
    dataset: Dataset | IterableDataset,
    converter: str,
    *,
    name: str,
    invalid_rows: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with each row converted, and no other columns.

    Args:
        dataset: rows as the public dataset has them; may stream.
        converter: the converter's name.
        name: the dataset's name, for messages ("train").
        invalid_rows: "error" stops at the first row that can't be read; "drop" leaves such rows out, and logs how many
            (later messages then number the remaining rows).
        num_proc: processes for `Dataset.map`; a streamed dataset uses none.

    Raises:
        UnknownNameError: no such converter.
        DataError: a column that the converter reads is missing, or a row can't be read.
    """
    found = get_converter(converter)
    columns = dataset.column_names or list(next(iter(dataset), {}))
    check_converter(found, columns, name)
    convert = partial(convert_row, converter=found, name=name)
    if invalid_rows == "drop":
        # Rows are converted twice, first only to see whether they can be, so that the output has columns of one type.
        dataset = dataset.filter(partial(_readable, convert=convert, dropped=[]), with_indices=True)
    options: dict[str, Any] = {} if isinstance(dataset, IterableDataset) else {"num_proc": num_proc}
    return dataset.map(convert, with_indices=True, remove_columns=columns, **options)


def check_converter(converter: Converter, columns: list[str], name: str) -> None:
    """Check that a dataset has the columns that a converter reads.

    Raises:
        DataError: one is missing.
    """
    missing = [column for column in converter.columns if column not in columns]
    if not missing:
        return
    fitting = [c.name for c in list_converters() if set(c.columns) <= set(columns)]
    hint = f" These converters fit its columns: {', '.join(fitting)}." if fitting else ""
    raise DataError(
        f"{name} dataset: the converter {converter.name!r} reads the columns {', '.join(converter.columns)}; found "
        f"{', '.join(columns) or 'none'}, missing: {', '.join(missing)}."
        f"{''.join(did_you_mean(column, columns) for column in missing)}{hint}",
        FaultReason.MISSING_COLUMNS,
    )


def convert_row(row: Row, index: int, converter: Converter, name: str) -> Row:
    """Return row number `index` of the dataset called `name`, converted.

    Raises:
        DataError: the converter can't read it.
    """
    try:
        return converter.fn({column: row[column] for column in converter.columns})
    except Exception as error:  # a converter may fail in any way at a row of another shape
        # A KeyError's text is only the key.
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{name} dataset, row {index}: the converter {converter.name!r} can't read this row: {said}. "
            'Correct it, or set invalid_rows="drop" to leave such rows out.',
            FaultReason.UNREADABLE_ROW,
        ) from error


def _readable(row: Row, index: int, convert: Callable[[Row, int], Row], dropped: list[int]) -> bool:
    """Tell whether a row can be read; the count is logged at 1, 10, 100, ... rows, because a stream may not end."""
    try:
        convert(row, index)
    except DataError as error:
        dropped.append(index)
        if (count := len(dropped)) == 10 ** (len(str(count)) - 1):
            logger.warning("Left out %d rows so far, the last one: %s", count, error)
        return False
    return True
