"""Two responses in columns of their own and which is better: answer_a, answer_b, winner; response_1, response_2, ...

Arena logs have this form (lmarena's `model_a`, `model_b`, `winner`), and most spreadsheets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...data_error import ColumnFault, FaultReason
from ...row_reading.column_form import ExportForm, Row
from ...row_reading.values import read_number
from ._choice import first_number, read_choice, suffixes, two_responses

_CHOICES = ("winner", "preference", "preferred", "choice", "better")
_SCORES = ("score", "rating", "reward")
_OTHER_FORMS = {"annotations", "annotation_id", "conversations", "messages"}


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the form of two responses and a choice, or of two responses with a score each."""
    names = two_responses(columns)
    if names is None or _OTHER_FORMS & set(columns) or any(".responses" in column for column in columns):
        return None
    choices = [column for column in columns if column.lower() in _CHOICES]
    scores = _score_columns(columns, names)
    if not choices and not scores:
        if {"chosen", "rejected"} <= set(columns) or "completions" in columns:
            return None
        raise ColumnFault(
            names[0],
            FaultReason.MISSING_COLUMNS,
            f"found {names[0]!r} and {names[1]!r}, but no column says which is better. Name it 'winner' (or "
            f"'preference'), or give scores: 'score_{suffixes(names)[0]}' and 'score_{suffixes(names)[1]}'.",
        )
    if len(choices) > 1:
        raise ColumnFault(
            choices[1],
            FaultReason.TWO_FORMS,
            f"found the choices {' and '.join(map(repr, choices))}; leave one out: columns: {{{choices[1]}: null}}.",
        )
    if "prompt" not in columns:
        raise ColumnFault(
            "prompt",
            FaultReason.MISSING_COLUMNS,
            f"found {names[0]!r} and {names[1]!r}, but no column 'prompt'. Say which column holds it: columns: "
            "{NAME: prompt}.",
        )
    choice = choices[0] if choices else None
    models = tuple(name for side in suffixes(names) if (name := f"model_{side}") in columns)
    first = None if choice is None else first_number((row.get(choice) for row in sample), choice, names)
    read = ("prompt", *names, *([choice] if choice else []), *(scores or ()), *models)
    gives = ("prompt", "completions", *(["ranks"] if choice else []), *(["scores"] if scores else []))
    convert = partial(_convert, names=names, choice=choice, scores=scores, models=models, first=first)
    title = "two responses and a choice" if choice else "two responses with scores"
    return ExportForm(title, tuple(dict.fromkeys(read)), gives, convert)


def _score_columns(columns: Sequence[str], names: tuple[str, str]) -> tuple[str, str] | None:
    first, second = suffixes(names)
    patterns = [(f"{what}_{first}", f"{what}_{second}") for what in _SCORES]
    patterns += [(f"{what}{first}", f"{what}{second}") for what in _SCORES]
    patterns += [(f"{names[0]}_{what}", f"{names[1]}_{what}") for what in _SCORES]
    return next((pair for pair in patterns if set(pair) <= set(columns)), None)


def _convert(
    row: Row,
    names: tuple[str, str],
    choice: str | None,
    scores: tuple[str, str] | None,
    models: tuple[str, ...],
    first: int | None,
) -> Row:
    found: Row = {"prompt": row["prompt"], "completions": [row[name] for name in names]}
    if choice is not None:
        found["ranks"] = read_choice(row[choice], choice, names, first, [row[model] for model in models])
    if scores is not None:
        found["scores"] = [read_number(row[column], column, "it ") for column in scores]
    return found
