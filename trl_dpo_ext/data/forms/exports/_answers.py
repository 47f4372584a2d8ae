"""The answers of several people to the same row: what annotation tools share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten


def the_one_answer(answers: Sequence[Any], column: str) -> Any:
    """Return the answer that all people gave.

    Raises:
        ColumnFault: there is none, or they differ: which one is right isn't guessed.
    """
    if not answers:
        raise ColumnFault(column, FaultReason.NO_ANSWER, "nobody has submitted an answer.")
    if any(answer != answers[0] for answer in answers):
        raise ColumnFault(
            column,
            FaultReason.ANSWERS_DISAGREE,
            f"people gave different answers ({', '.join(shorten(answer) for answer in answers[:3])}); which is right "
            "isn't guessed. Keep one, or leave the row out (`invalid_rows: drop`).",
        )
    return answers[0]


def mean_answer(answers: Sequence[float], column: str) -> float:
    """Return the mean of people's ratings.

    Raises:
        ColumnFault: there is none.
    """
    if not answers:
        raise ColumnFault(column, FaultReason.NO_ANSWER, "nobody has submitted a rating.")
    return sum(answers) / len(answers)


def ranks_of(order: Sequence[Any], names: Sequence[str], column: str) -> list[int]:
    """Return the rank of each name in an order that has the best first.

    Raises:
        ColumnFault: the order doesn't hold each name once.
    """
    if sorted(map(str, order)) != sorted(names):
        raise ColumnFault(
            column,
            FaultReason.LENGTH_MISMATCH,
            f"the ranking holds {', '.join(map(str, order)) or 'nothing'}, expected each of {', '.join(names)} once.",
        )
    return [list(map(str, order)).index(name) for name in names]
