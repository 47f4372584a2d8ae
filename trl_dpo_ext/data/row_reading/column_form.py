"""What an accepted form of columns is. Each form is one file in the folder `forms`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
        labels: for each response whether it is desirable, None where that is unknown; None where the form has none.
    """

    ranks: list[int]
    scores: list[float] | None = None
    labels: Sequence[bool | None] | None = None


def accept_other_columns(found: Collection[str]) -> None:
    """Accept any other columns of the dataset."""


@dataclass(frozen=True)
class ColumnForm:
    """One accepted form of columns. A form is a file in the folder `forms` that binds one to `FORM`.

    Attributes:
        name: the form in a few words, for people ("preference pairs").
        columns: the columns that a dataset of this form must have.
        response_columns: those of its columns that hold responses. A dataset with response columns of two forms is
            refused.
        read_texts: from a row to its prompt and responses; raises `ColumnFault`.
        read_order: from a row and its number of responses to their order; raises `ColumnFault`.
        optional_columns: the columns that the form reads where they exist.
        scores_columns: the columns whose presence means that rows have scores.
        labels_column: the column whose presence means that rows have labels.
        check_columns: raises `ColumnFault` if another column of the dataset contradicts the form.
    """

    name: str
    columns: tuple[str, ...]
    response_columns: tuple[str, ...]
    read_texts: Callable[[Row], PromptAndResponses]
    read_order: Callable[[Row, int], Order]
    optional_columns: tuple[str, ...] = ()
    scores_columns: tuple[str, ...] = ()
    labels_column: str | None = None
    check_columns: Callable[[Collection[str]], None] = accept_other_columns

    def __str__(self) -> str:
        return " + ".join(self.columns)

    def has_scores(self, columns: Collection[str]) -> bool:
        """Return whether rows with these columns have scores."""
        return bool(self.scores_columns) and set(self.scores_columns) <= set(columns)


@dataclass(frozen=True)
class ExportForm:
    """How the rows of another tool become rows of an accepted form.

    A file in the folder `forms/exports` has a function `recognise(columns, sample) -> ExportForm | None`: from the
    columns of a dataset and its first rows to the form that they have, or None where they have another. It raises
    `ColumnFault` where the rows could be read in two ways.

    Attributes:
        name: the form in a few words, for people ("Argilla export").
        columns: the columns that it reads.
        gives: the columns of the accepted form that rows then have.
        convert: from a row to a row with those columns; raises `ColumnFault`.
    """

    name: str
    columns: tuple[str, ...]
    gives: tuple[str, ...]
    convert: Callable[[Row], Row]
