"""Rankings in order: prompt and completions, the best response first."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from ..data_error import ColumnFault, FaultReason
from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import read_completions


def _check_columns(found: Collection[str]) -> None:
    # The order of the list counts here, so a misspelt column would be ignored and the list's order believed.
    for right in ("ranks", "scores"):
        for wrong in get_close_matches(right, found, n=1, cutoff=0.75):
            raise ColumnFault(
                wrong,
                FaultReason.MISSING_COLUMNS,
                f"found {wrong!r}, but neither 'ranks' nor 'scores'. Rename it to {right!r}, or remove it if the "
                "completions are in order, best first.",
            )


def _read_order(row: Row, count: int) -> Order:
    return Order(list(range(count)))


FORM = ColumnForm(
    columns=("prompt", "completions"),
    response_columns=("completions",),
    check_columns=_check_columns,
    read_texts=read_completions,
    read_order=_read_order,
)
