"""Rankings with ranks: prompt, completions, ranks, and scores where given."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import read_completions, read_ranks, read_scores


def _read_order(row: Row, count: int) -> Order:
    scores = read_scores(row, count) if "scores" in row else None
    return Order(read_ranks(row, count), scores)


FORM = ColumnForm(
    name="rankings with ranks",
    columns=("prompt", "completions", "ranks"),
    optional_columns=("scores",),
    response_columns=("completions",),
    scores_columns=("scores",),
    read_texts=read_completions,
    read_order=_read_order,
)
