"""Rankings with scores: prompt, completions, scores."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import ranks_by_score, read_completions, read_scores


def _read_order(row: Row, count: int) -> Order:
    """Return the order by score: a higher score is better, equal scores are ties."""
    scores = read_scores(row, count)
    return Order(ranks_by_score(scores), scores)


FORM = ColumnForm(
    name="rankings with scores",
    columns=("prompt", "completions", "scores"),
    response_columns=("completions",),
    scores_columns=("scores",),
    read_texts=read_completions,
    read_order=_read_order,
)
