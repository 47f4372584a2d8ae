"""What an accepted form of columns is. Each form is one file in the folder `forms`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class PromptAndResponses:
    """The texts of a row, not yet checked.

    Attributes:
        prompt: a string or a message list.
        responses: K of the same type as the prompt.
        places: for each response, its column and its name in messages ("response 2").
    """

    prompt: Any
    responses: list[Any]
    places: list[tuple[str, str]]


@dataclass(frozen=True)
class Order:
    """How good the K responses of a row are.

    Attributes:
        ranks: K ranks, 0 = best, without gaps; equal ranks are ties.
        scores: K scores, higher is better, or None where the form has none.
    """

    ranks: list[int]
    scores: list[float] | None = None


def accept_other_columns(found: Collection[str]) -> None:
    """Accept any other columns of the dataset."""


@dataclass(frozen=True)
class ColumnForm:
    """One accepted form of columns. A form is a file in the folder `forms` that binds one to `FORM`.

    Attributes:
        columns: the columns that a dataset of this form must have.
        response_columns: those of its columns that hold responses. A dataset with response columns of two forms is
            refused.
        read_texts: from a row to its prompt and responses; raises `ColumnFault`.
        read_order: from a row and its number of responses to their order; raises `ColumnFault`.
        optional_columns: the columns that the form reads where they exist.
        scores_column: the column whose presence means that rows have scores; None if rows of the form never do.
        check_columns: raises `ColumnFault` if another column of the dataset contradicts the form.
    """

    columns: tuple[str, ...]
    response_columns: tuple[str, ...]
    read_texts: Callable[[Row], PromptAndResponses]
    read_order: Callable[[Row, int], Order]
    optional_columns: tuple[str, ...] = ()
    scores_column: str | None = None
    check_columns: Callable[[Collection[str]], None] = accept_other_columns

    def __str__(self) -> str:
        return " + ".join(self.columns)
