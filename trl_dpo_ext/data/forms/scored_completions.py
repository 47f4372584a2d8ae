"""Rankings with scores: prompt, completions, scores."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import dense_ranks, read_completions, read_numbers


def _read_order(row: Row, count: int) -> Order:
    """Return the order by score: a higher score is better, equal scores are ties."""
    scores = read_numbers(row, "scores", count)
    return Order(dense_ranks([-score for score in scores]), scores)


FORM = ColumnForm(
    columns=("prompt", "completions", "scores"),
    response_columns=("completions",),
    scores_column="scores",
    read_texts=read_completions,
    read_order=_read_order,
)
