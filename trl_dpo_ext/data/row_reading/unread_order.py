"""Find columns that seem to order the responses of a row and that its form doesn't read.

Without this check the order of the list would be believed, and a ranking could be trained upside down.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten
from .column_form import Row

# The names that public datasets give to judgements of responses.
_ORDER_NAMES = re.compile(
    r"(.*_)?(rank|ranking|rating|reward|score|preference|vote|grade|elo|winner|best|label)(s|_list|_values)?"
)
# Numbers per response that measure something other than quality.
_OTHER_NUMBERS = re.compile(
    r"(.*_)?(length|len|size|count|num|token|word|char|index|idx|id|seed|time|latency|cost|temperature|logp|logprob)s?(_.*)?"
)


def refuse_unread_order(found: Collection[str]) -> None:
    """Check that no column's name says that it orders the responses.

    Call it for the columns of a form that takes the list's own order.

    Args:
        found: the dataset's columns.

    Raises:
        ColumnFault: one's name does.
    """
    for right in ("ranks", "scores"):
        for wrong in get_close_matches(right, found, n=1, cutoff=0.75):
            raise ColumnFault(
                wrong,
                FaultReason.ORDER_NOT_READ,
                f"found {wrong!r}, but neither 'ranks' nor 'scores'. Rename it to {right!r}, or remove it if the "
                "completions are in order, best first.",
            )
    for column in found:
        if _ORDER_NAMES.fullmatch(column.lower()):
            raise _unread(column, "")


def refuse_unread_numbers(row: Row, count: int, read: Collection[str]) -> None:
    """Check that no other column of a row has one number per response, unless its name says what else it measures.

    Args:
        row: the row.
        count: its number of responses.
        read: the columns that the form reads.

    Raises:
        ColumnFault: a column has.
    """
    for column, values in row.items():
        if column in read or not isinstance(values, list) or len(values) != count:
            continue
        numbers = [value for value in values if _is_number(value)]
        # Equal numbers order nothing.
        if len(numbers) == count and len(set(map(float, numbers))) > 1 and not _OTHER_NUMBERS.fullmatch(column.lower()):
            raise _unread(column, f" with a number per response ({shorten(values)})")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _unread(column: str, what: str) -> ColumnFault:
    return ColumnFault(
        column,
        FaultReason.ORDER_NOT_READ,
        f"found the column {column!r}{what}, which isn't read. Without 'ranks' or 'scores' the completions count as "
        "ordered, best first. If the column holds their quality, rename it to 'scores' (higher is better) or 'ranks' "
        "(0 = best); if they are in order, remove it.",
    )
