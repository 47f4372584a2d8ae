"""Lists of responses and their numbers: what the forms with a column `completions` share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten
from .column_form import PromptAndResponses, Row
from .values import parse_list, read_number


def read_completions(row: Row) -> PromptAndResponses:
    """Return `prompt` and `completions` of a row.

    Raises:
        ColumnFault: `completions` isn't a list.
    """
    responses = parse_list(row["completions"])
    if not isinstance(responses, list):
        raise ColumnFault(
            "completions", FaultReason.WRONG_TYPE, f"found {shorten(responses)}, expected a list of responses."
        )
    places = [("completions", f"response {number}") for number in range(len(responses))]
    return PromptAndResponses(row["prompt"], responses, places)


def read_single(row: Row) -> PromptAndResponses:
    """Return `prompt` and `completion` of a row."""
    return PromptAndResponses(row["prompt"], [row["completion"]], [("completion", "the response")])


def read_list(row: Row, column: str, count: int, of: str = "numbers") -> list[Any]:
    """Return the list of a column with one value per response.

    Raises:
        ColumnFault: it isn't a list of that length.
    """
    values = parse_list(row[column])
    if not isinstance(values, list):
        raise ColumnFault(column, FaultReason.WRONG_TYPE, f"found {shorten(values)}, expected a list of {count} {of}.")
    if len(values) != count:
        raise ColumnFault(column, FaultReason.LENGTH_MISMATCH, f"found {len(values)} for {count} responses.")
    return values


def read_numbers(row: Row, column: str, count: int) -> list[Any]:
    """Return the `count` finite numbers of a column.

    Raises:
        ColumnFault: it isn't a list of that length, or holds something else.
    """
    values = read_list(row, column, count)
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


def read_ranks(row: Row, count: int) -> list[int]:
    """Return the ranks of a row without gaps; the row's are integers, 0 = best, and equal ranks are ties.

    Raises:
        ColumnFault: they aren't.
    """
    ranks = read_numbers(row, "ranks", count)
    for number, rank in enumerate(ranks):
        if rank != int(rank):
            raise ColumnFault(
                "ranks",
                FaultReason.RANK_NOT_AN_INTEGER,
                f"number {number} is {rank}, expected an integer; tied responses share a rank.",
            )
        if rank < 0:
            raise ColumnFault(
                "ranks", FaultReason.NEGATIVE_RANK, f"number {number} is {rank}, expected 0 (best) or more."
            )
    return dense_ranks(ranks)


def read_scores(row: Row, count: int) -> list[float]:
    """Return the `count` scores of a row: numbers, also as text or as answers on a scale (see `read_number`).

    Raises:
        ColumnFault: it isn't a list of that length, or holds something else.
    """
    values = read_list(row, "scores", count)
    return [read_number(value, "scores", f"number {place} ") for place, value in enumerate(values)]


def dense_ranks(values: list[Any]) -> list[int]:
    """Return the rank of each value, 0 for the smallest, without gaps; equal values share a rank.

    Example:
        >>> dense_ranks([9, 4, 1000, 4])
        [1, 0, 2, 0]
    """
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]


def ranks_by_score(scores: list[float]) -> list[int]:
    """Return the ranks that scores give: a higher score is better, equal scores are ties."""
    return dense_ranks([-score for score in scores])
