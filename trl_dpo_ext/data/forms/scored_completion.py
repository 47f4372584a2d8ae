"""Single responses with a score: prompt, completion, score."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import read_single
from ..row_reading.values import read_number


def _read_order(row: Row, count: int) -> Order:
    return Order([0], scores=[read_number(row["score"], "score", "the score ")])


FORM = ColumnForm(
    name="single responses with scores",
    columns=("prompt", "completion", "score"),
    response_columns=("completion",),
    scores_columns=("score",),
    read_texts=read_single,
    read_order=_read_order,
)
