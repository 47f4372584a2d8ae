"""Lists of responses and their numbers: what the forms with a column `completions` share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten
from .column_form import PromptAndResponses, Row


def read_completions(row: Row) -> PromptAndResponses:
    """Return `prompt` and `completions` of a row.

    Raises:
        ColumnFault: `completions` isn't a list.
    """
    responses = row["completions"]
    if not isinstance(responses, list):
        raise ColumnFault(
            "completions", FaultReason.WRONG_TYPE, f"found {shorten(responses)}, expected a list of responses."
        )
    places = [("completions", f"response {number}") for number in range(len(responses))]
    return PromptAndResponses(row["prompt"], responses, places)


def read_numbers(row: Row, column: str, count: int) -> list[Any]:
    """Return the `count` finite numbers of a column.

    Raises:
        ColumnFault: it isn't a list of that length, or holds something else.
    """
    values = row[column]
    if not isinstance(values, list):
        raise ColumnFault(
            column, FaultReason.WRONG_TYPE, f"found {shorten(values)}, expected a list of {count} numbers."
        )
    if len(values) != count:
        raise ColumnFault(column, FaultReason.LENGTH_MISMATCH, f"found {len(values)} for {count} responses.")
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ColumnFault(
                column, FaultReason.WRONG_TYPE, f"number {number} is {shorten(value)}, expected a number."
            )
        if not math.isfinite(value):
            raise ColumnFault(
                column, FaultReason.NAN_OR_INFINITY, f"number {number} is {value}, expected a finite number."
            )
    return values


def dense_ranks(values: list[Any]) -> list[int]:
    """Return the rank of each value, 0 for the smallest, without gaps; equal values share a rank.

    Example:
        >>> dense_ranks([9, 4, 1000, 4])
        [1, 0, 2, 0]
    """
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]
