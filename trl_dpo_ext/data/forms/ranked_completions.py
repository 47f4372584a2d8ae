"""Rankings with ranks: prompt, completions, ranks, and scores where given."""

from __future__ import annotations

from ..data_error import ColumnFault, FaultReason
from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import dense_ranks, read_completions, read_numbers


def _read_order(row: Row, count: int) -> Order:
    """Return ranks without gaps; the row's are integers, 0 = best, and equal ranks are ties."""
    scores = read_numbers(row, "scores", count) if "scores" in row else None
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
    return Order(dense_ranks(ranks), scores)


FORM = ColumnForm(
    columns=("prompt", "completions", "ranks"),
    optional_columns=("scores",),
    response_columns=("completions",),
    scores_column="scores",
    read_texts=read_completions,
    read_order=_read_order,
)
