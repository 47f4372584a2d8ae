"""Numbers, labels and lists as files hold them: CSV cells and many exports have them as text."""

from __future__ import annotations

import ast
import json
import math
import re
from numbers import Real
from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten

# "4", "4.5", "-1e3"; on a scale also "4/5", "4 of 5", "4 - good". A date or a range is no number.
_NUMBER = re.compile(
    r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:(?:/|(?:out )?of)\s*\d+\s*|[-:)]\s*[^\W\d_].*)?", re.DOTALL
)
# The answers of a Likert scale, from 1 to 5.
_LIKERT = {
    "strongly disagree": 1.0,
    "disagree": 2.0,
    "neither agree nor disagree": 3.0,
    "neutral": 3.0,
    "agree": 4.0,
    "strongly agree": 5.0,
}
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def parse_list(value: Any) -> Any:
    """Return a text that holds a list, as JSON or as Python prints it, as that list; anything else as it is.

    Example:
        >>> parse_list('["a", "b"]'), parse_list("a"), parse_list([1])
        (['a', 'b'], 'a', [1])
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(found, list):
                return found
    return value


def read_number(value: Any, column: str, place: str = "") -> float:
    """Return a number, which may be text or the answer on a scale from 1 to 5 ("4 - good", "agree").

    Args:
        value: what the row has.
        column: where it stands.
        place: its name in messages ("number 2 ").

    Raises:
        ColumnFault: it is no finite number.

    Example:
        >>> read_number("4/5", "rating"), read_number("Strongly agree", "rating"), read_number(2, "rating")
        (4.0, 5.0, 2.0)
    """
    number: Any = value
    if isinstance(value, str):
        matched = _NUMBER.fullmatch(value)
        likert = _LIKERT.get(" ".join(value.lower().split()))
        number = float(matched.group(1)) if matched else likert if likert is not None else _special(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ColumnFault(column, FaultReason.WRONG_TYPE, f"{place}is {shorten(value)}, expected a number.")
    if not math.isfinite(number):
        raise ColumnFault(column, FaultReason.NAN_OR_INFINITY, f"{place}is {value}, expected a finite number.")
    return float(number)


def _special(text: str) -> float | None:
    return float(text) if text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity") else None


def read_label(value: Any, column: str, place: str = "") -> bool:
    """Return whether a response is desirable: true or false, also as 1 or 0, or as text.

    Raises:
        ColumnFault: it is something else.

    Example:
        >>> read_label("False", "label"), read_label(1, "label")
        (False, True)
    """
    found = _LABELS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if found is None:
        raise ColumnFault(
            column,
            FaultReason.WRONG_TYPE,
            f"{place}is {shorten(value)}, expected true (desirable) or false (undesirable).",
        )
    return found
