"""Rankings in order: prompt and completions, the best response first."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import read_completions
from ..row_reading.unread_order import refuse_misspelt_order


def _read_order(row: Row, count: int) -> Order:
    return Order(list(range(count)))


FORM = ColumnForm(
    name="rankings, the best response first",
    columns=("prompt", "completions"),
    response_columns=("completions",),
    check_columns=refuse_misspelt_order,
    read_texts=read_completions,
    read_order=_read_order,
)
