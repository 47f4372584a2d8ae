"""Two responses in columns of their own, and the word that says which is better: what several exports share."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten

_STEMS = "answer|response|completion|output|reply|generation|candidate|text|txt"
_RESPONSE = re.compile(rf"({_STEMS})[_-]?(a|b|0|1|2)", re.IGNORECASE)
_SUFFIXES = (("a", "b"), ("1", "2"), ("0", "1"))
_SIDES = (("left", "first"), ("right", "second"))
_TIES = {"tie", "draw", "equal", "same", "both", "neither", "tiebothbad", "bothgood", "bothbad"}
_PREFIXES = ("", "model", "answer", "response", "completion", "option", "assistant", "output", "reply", "chatbot")


def two_responses(columns: Iterable[str]) -> tuple[str, str] | None:
    """Return the two columns that hold a response each (answer_a and answer_b, response1 and response2, ...), or None.

    Raises:
        ColumnFault: two such pairs of columns are there.

    Example:
        >>> two_responses(["prompt", "answer_a", "answer_b", "winner"])
        ('answer_a', 'answer_b')
    """
    by_name: dict[tuple[str, str], str] = {}
    for column in columns:
        if matched := _RESPONSE.fullmatch(column):
            by_name[matched.group(1).lower(), matched.group(2).lower()] = column
    found = []
    for stem in sorted({stem for stem, _ in by_name}):
        numbers = {number for other, number in by_name if other == stem}
        found += [
            (by_name[stem, first], by_name[stem, second])
            for first, second in _SUFFIXES
            if numbers == {first, second}  # of three responses, none is a pair
        ]
    if len(found) > 1:
        raise ColumnFault(
            found[1][0],
            FaultReason.TWO_FORMS,
            f"found two pairs of responses, {' and '.join(map(repr, found[0]))}, and "
            f"{' and '.join(map(repr, found[1]))}. Leave one out with columns: {{NAME: null}}.",
        )
    return found[0] if found else None


def suffixes(names: tuple[str, str]) -> tuple[str, str]:
    """Return what tells two columns apart: ("a", "b") for answer_a and answer_b."""
    return names[0][-1].lower(), names[1][-1].lower()


def first_number(values: Iterable[Any], column: str, names: tuple[str, str]) -> int | None:
    """Return the number that stands for the first response, 0 or 1, as the values of a choice show.

    Args:
        values: of the dataset's first rows.
        column: their column.
        names: the columns of the two responses.

    Returns:
        None where the values hold no numbers.

    Raises:
        ColumnFault: there are other numbers than 0 and 1, or 1 and 2, or all are 1, which could mean either response.
    """
    found = {number for value in values if (number := _whole_number(value)) is not None}
    if not found:
        return None
    if suffixes(names) == ("0", "1") and found <= {0, 1}:
        return 0
    if found <= {0, 1} and 0 in found:
        return 0
    if found <= {1, 2} and 2 in found:
        return 1
    what = "only 1" if found == {1} else ", ".join(map(str, sorted(found)[:8]))
    raise ColumnFault(
        column,
        FaultReason.UNCLEAR_CHOICE,
        f"the column {column!r} holds {what}, which doesn't say which response is better: 0 and 1, or 1 and 2, would. "
        f"Write {names[0]!r}, {names[1]!r} or 'tie' instead.",
    )


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.0)?\s*", value):
        value = float(value)
    return (
        int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) else None
    )


def read_choice(
    value: Any, column: str, names: tuple[str, str], first: int | None, models: Sequence[Any] = ()
) -> list[int]:
    """Return the ranks of two responses, as a word or number says which is better.

    Args:
        value: what the row has: a column's name, A or B, left or right, a model's name, tie, or a number.
        column: where it stands.
        names: the columns of the two responses.
        first: the number that stands for the first response; None where no number does.
        models: the names of the models that wrote them, where the row has them.

    Raises:
        ColumnFault: it says neither, or could mean both.

    Example:
        >>> read_choice("Model B", "winner", ("answer_a", "answer_b"), None)
        [1, 0]
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ColumnFault(column, FaultReason.NO_ANSWER, f"found {value!r}, so nobody has said which is better.")
    number = _whole_number(value)
    if number is not None and first is not None and number - first in (0, 1):
        return [0, 1] if number == first else [1, 0]
    if number is None and isinstance(value, str):
        word = _plain(value)
        if word in _TIES:
            return [0, 0]
        chosen = [side for side in (0, 1) if word in _words(names, side, models)]
        if len(chosen) == 1:
            return [0, 1] if chosen == [0] else [1, 0]
    expected = [repr(names[0]), repr(names[1]), *(["A or B"] if suffixes(names) == ("a", "b") else []), "'tie'"]
    numbers = "" if first is None else f", {first} or {first + 1}"
    raise ColumnFault(
        column, FaultReason.UNCLEAR_CHOICE, f"found {shorten(value)}, expected {', '.join(expected)}{numbers}."
    )


def _words(names: tuple[str, str], side: int, models: Sequence[Any]) -> Collection[str]:
    marks = {suffixes(names)[side], ("a", "b")[side]}
    # "1" alone is a number, whose meaning the other rows decide.
    words = {prefix + mark for prefix in _PREFIXES for mark in marks if prefix or mark.isalpha()}
    model = [_plain(str(models[side]))] if len(models) == 2 and models[side] else []
    return {_plain(names[side]), *_SIDES[side], *words, *model}


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())
