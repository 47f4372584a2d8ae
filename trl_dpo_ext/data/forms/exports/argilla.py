"""Argilla's exports: `to_datasets` and `to_list(flatten=True)` (columns `QUESTION.responses`), `to_json` (nested), and
those of Argilla 1 (a list of answers under the question's name).

See Argilla's source (`records/_io`) and dataset cards of Argilla 1. Suggestions are a model's, and aren't
read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten
from ...row_reading.column_form import ExportForm, Row
from ...row_reading.values import read_number
from ._answers import mean_answer, the_one_answer
from ._choice import read_choice, two_responses

_NOT_SUBMITTED = ("draft", "discarded", "pending")


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the form of an Argilla export whose questions judge responses."""
    flat = any(column.endswith(".responses") for column in columns)
    nested = {"fields", "responses"} <= set(columns)
    old = [c for c in columns if any(_is_old(row.get(c)) for row in sample)]
    if not (flat or nested or old):
        return None
    rows = [_flatten(row) for row in sample]
    fields = list(dict.fromkeys(name for row in rows for name in row[0]))
    questions = list(dict.fromkeys(name for row in rows for name, answers in row[1].items() if answers))
    if "prompt" not in fields:
        raise ColumnFault(
            "prompt",
            FaultReason.MISSING_COLUMNS,
            f"this is an Argilla export, expected a field 'prompt'; found {', '.join(fields)}.",
        )
    kinds = {name: _kind(answers[0]) for row in rows for name, answers in row[1].items() if answers}
    for kind in ("ranking", "choice", "rating"):
        asked = [name for name in questions if kinds[name] == kind]
        if kind == "choice":
            asked = asked if two_responses(fields) else []
        if len(asked) > 1 and kind != "rating":
            raise ColumnFault(
                asked[1],
                FaultReason.TWO_FORMS,
                f"the questions {' and '.join(map(repr, asked))} both order the responses; leave one out with columns: "
                f"{{{asked[1]}.responses: null}}.",
            )
        if asked:
            gives = ("prompt", "completions", "scores" if kind == "rating" else "ranks")
            if kind == "rating" and len(_rated(asked, fields)) == 1:
                gives = ("prompt", "completion", "score")
            # Argilla's own columns order nothing else: id, status, users, suggestions.
            return ExportForm(
                f"Argilla export, {kind}", tuple(columns), gives, partial(_convert, kind=kind, questions=tuple(asked))
            )
    raise ColumnFault(
        questions[0] if questions else "responses",
        FaultReason.NO_ANSWER,
        "this is an Argilla export, but no submitted answer ranks, chooses or rates the responses. Suggestions aren't "
        f"read. Questions: {', '.join(questions) or 'none answered'}.",
    )


def _is_old(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(v, Mapping) and {"user_id", "value", "status"} <= set(v) for v in value
    )


def _flatten(row: Row) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the fields of a record, and the submitted answers to each question."""
    if isinstance(row.get("fields"), Mapping):
        responses = row.get("responses") or {}
        answers = {q: [a for a in given or [] if isinstance(a, Mapping)] for q, given in responses.items()}
        return dict(row["fields"]), {
            q: [a.get("value") for a in given if _submitted(a)] for q, given in answers.items()
        }
    fields: dict[str, Any] = {}
    found: dict[str, list[Any]] = {}
    for column, value in row.items():
        if column.endswith(".responses"):
            states = row.get(f"{column}.status") or [None] * len(value or [])
            pairs = zip(value or [], states, strict=False)
            found[column.removesuffix(".responses")] = [v for v, state in pairs if state not in _NOT_SUBMITTED]
        elif _is_old(value):
            found[column] = [answer["value"] for answer in value if _submitted(answer)]
        elif isinstance(value, str | list) and "." not in column:
            fields[column] = value
    return fields, found


def _submitted(answer: Mapping[str, Any]) -> bool:
    return answer.get("status") not in _NOT_SUBMITTED


def _kind(answer: Any) -> str:
    if isinstance(answer, list | Mapping):
        return "ranking"
    return "rating" if isinstance(answer, int | float) else "choice"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _rated(questions: Sequence[str], fields: Sequence[str]) -> dict[str, str]:
    """Return the field that each rating question rates: the one whose name the question's name holds."""
    others = [field for field in fields if field not in ("id", "status", "external_id", "prompt")]
    found = {}
    for question in questions:
        named = [field for field in others if _plain(field) in _plain(question)]
        if not named and len(questions) == 1:
            named = [field for field in others if _plain(field) in ("response", "completion", "answer", "generation")]
        if len(named) != 1:
            raise ColumnFault(
                question,
                FaultReason.UNCLEAR_CHOICE,
                f"the question {question!r} doesn't say which response it rates; name it after one of the fields "
                f"{', '.join(others)}, or leave it out with columns: {{{question}.responses: null}}.",
            )
        found[question] = named[0]
    return found


def _convert(row: Row, kind: str, questions: tuple[str, ...]) -> Row:
    fields, answers = _flatten(row)
    question = questions[0]
    if kind == "choice":
        names = two_responses(fields)
        if names is None:
            raise ColumnFault(question, FaultReason.MISSING_COLUMNS, f"found {', '.join(fields)}, not two responses.")
        choice = the_one_answer(answers.get(question, []), question)
        ranks = read_choice(choice, question, names, None)
        return {"prompt": fields["prompt"], "completions": [fields[name] for name in names], "ranks": ranks}
    if kind == "ranking":
        orders = [_order(answer, question) for answer in answers.get(question, [])]
        levels = the_one_answer(orders, question)
        by_name = {_plain(field): field for field in fields}
        unknown = [name for name in levels if _plain(name) not in by_name]
        if unknown:
            raise ColumnFault(
                question,
                FaultReason.UNCLEAR_CHOICE,
                f"the ranking holds {', '.join(unknown)}, but the fields are {', '.join(fields)}. Name fields as the "
                "ranking does.",
            )
        names_of = {by_name[_plain(name)]: rank for name, rank in levels.items()}
        kept = [field for field in fields if field in names_of]
        return {
            "prompt": fields["prompt"],
            "completions": [fields[field] for field in kept],
            "ranks": [names_of[field] for field in kept],
        }
    rated = _rated(questions, list(fields))
    scores = {
        rated[q]: mean_answer([read_number(a, q, "the rating ") for a in answers.get(q, [])], q) for q in questions
    }
    kept = [field for field in fields if field in scores]
    if len(questions) == 1:
        return {"prompt": fields["prompt"], "completion": fields[kept[0]], "score": scores[kept[0]]}
    return {
        "prompt": fields["prompt"],
        "completions": [fields[field] for field in kept],
        "scores": [scores[field] for field in kept],
    }


def _order(answer: Any, question: str) -> dict[str, int]:
    """Return the rank of each name in an answer: names with the best first, or names with ranks."""
    if isinstance(answer, Mapping):  # Arrow's form of a list of objects
        answer = [
            {"value": v, "rank": r} for v, r in zip(answer.get("value", []), answer.get("rank", []), strict=False)
        ]
    if answer and all(isinstance(item, Mapping) for item in answer):
        ranks = {str(item.get("value")): item.get("rank") for item in answer}
        if all(isinstance(rank, int) for rank in ranks.values()):
            return {name: rank for name, rank in ranks.items() if isinstance(rank, int)}
    elif answer and all(isinstance(item, str) for item in answer):
        return {name: rank for rank, name in enumerate(answer)}
    raise ColumnFault(
        question, FaultReason.WRONG_TYPE, f"found the ranking {shorten(answer)}, expected names in order."
    )
