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
from .values import parse_list

# The names that public datasets give to judgements with one value per response, and to choices of one response.
_JUDGEMENT_NAMES = re.compile(r"(.*_)?(rank|ranking|rating|reward|score|vote|grade|elo|label)(s|_list|_values)?")
_CHOICE_NAMES = re.compile(r"(.*_)?(preference|preferred|winner|best|choice)s?|winner_.*")
# "A > B", "[[B>>A]]": an order as text.
_ORDER_TEXT = re.compile(r"[\[(\s]*\w{1,30}(\s*(>+|<+|≻)\s*\w{1,30})+[\])\s]*")
# Numbers per response that measure something other than quality.
_OTHER_NUMBERS = re.compile(
    r"(.*_)?(length|len|size|count|num|token|word|char|index|idx|id|seed|time|latency|cost|temperature|logp|logprob)s?(_.*)?"
)


def refuse_misspelt_order(found: Collection[str]) -> None:
    """Check that no column is a misspelt `ranks` or `scores`.

    Args:
        found: the columns of a dataset whose form takes the list's own order.

    Raises:
        ColumnFault: one is.
    """
    for right in ("ranks", "scores"):
        for wrong in get_close_matches(right, found, n=1, cutoff=0.75):
            raise ColumnFault(
                wrong,
                FaultReason.ORDER_NOT_READ,
                f"found {wrong!r}, but neither 'ranks' nor 'scores'. Rename it to {right!r}, or remove it if the "
                "completions are in order, best first.",
            )


def refuse_unread_order(row: Row, count: int, read: Collection[str]) -> None:
    """Check that no other column of a row orders its responses.

    That is a column with one number per response, unless its name says what else it measures; a column with one value
    per response whose name says that it judges them; one whose name says that it chooses a response; and one whose
    text is an order ("A > B").

    Args:
        row: the row.
        count: its number of responses.
        read: the columns that the form reads.

    Raises:
        ColumnFault: a column does.
    """
    for column, value in row.items():
        if column in read or value is None:
            continue
        name = column.lower()
        if _CHOICE_NAMES.fullmatch(name) and value != "":
            raise _unread(column, value)
        if isinstance(value, str) and _ORDER_TEXT.fullmatch(value):
            raise _unread(column, value)
        value = parse_list(value)
        if not isinstance(value, list) or len(value) != count:
            continue
        # Equal numbers order nothing.
        ordered = all(map(_is_number, value)) and len(set(map(float, value))) > 1
        if _JUDGEMENT_NAMES.fullmatch(name) or (ordered and not _OTHER_NUMBERS.fullmatch(name)):
            raise _unread(column, value)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _unread(column: str, value: Any) -> ColumnFault:
    return ColumnFault(
        column,
        FaultReason.ORDER_NOT_READ,
        f"found the column {column!r} ({shorten(value)}), which seems to order the responses but isn't read. If it "
        "holds their quality, name it 'scores' (higher is better) or 'ranks' (0 = best), in the file or with "
        f"columns: {{{column}: scores}}; if it doesn't, leave it out with columns: {{{column}: null}}.",
    )
