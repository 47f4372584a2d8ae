"""Single responses, each desirable or not: prompt, completion, label, as TRL's unpaired preference format has them."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import read_single
from ..row_reading.values import read_label, read_number


def _read_order(row: Row, count: int) -> Order:
    scores = [read_number(row["score"], "score", "the score ")] if "score" in row else None
    return Order([0], scores, [read_label(row["label"], "label", "the label ")])


FORM = ColumnForm(
    name="single responses with labels",
    columns=("prompt", "completion", "label"),
    response_columns=("completion",),
    optional_columns=("score",),
    scores_columns=("score",),
    labels_column="label",
    read_texts=read_single,
    read_order=_read_order,
)
