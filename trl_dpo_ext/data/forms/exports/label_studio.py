"""Label Studio's JSON export: `data`, and `annotations` with the results of the tags Pairwise, Ranker, Rating, Choices.

See Label Studio's documentation of the task format and of these tags, and data-juicer's mapper for human
preferences, which reads the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten
from ...row_reading.column_form import ExportForm, Row
from ...row_reading.values import read_number
from ._answers import mean_answer, ranks_of, the_one_answer
from ._choice import read_choice, two_responses

_PROMPTS = ("prompt", "question", "instruction", "query")
_KINDS = ("pairwise", "ranker", "rating", "choices")


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the form of a Label Studio export whose results judge responses."""
    if not {"annotations", "data"} <= set(columns):
        return None
    found = {result.get("type") for row in sample for answer in _answers(row) for result in answer}
    kinds = [kind for kind in _KINDS if kind in found]
    if not kinds:
        raise ColumnFault(
            "annotations",
            FaultReason.MISSING_COLUMNS,
            "this is a Label Studio export, but no annotation has a result of the tags Pairwise, Ranker, Rating or "
            f"Choices (found: {', '.join(sorted(map(str, found))) or 'none'}).",
        )
    gives = ("prompt", "completions", "scores" if kinds[0] == "rating" else "ranks")
    columns_read = ("data", "annotations", *(c for c in ("predictions", "drafts") if c in columns))
    return ExportForm(f"Label Studio export, {kinds[0]}", columns_read, gives, partial(_convert, kind=kinds[0]))


def _answers(row: Row) -> list[list[dict[str, Any]]]:
    """Return the results of each annotation that wasn't skipped."""
    annotations = row.get("annotations") or []
    found = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    return [[r for r in a.get("result") or [] if isinstance(r, dict)] for a in found]


def _convert(row: Row, kind: str) -> Row:
    data = row["data"] if isinstance(row["data"], dict) else {}
    prompt = next((data[name] for name in _PROMPTS if data.get(name)), None)
    if prompt is None:
        raise ColumnFault(
            "data",
            FaultReason.MISSING_COLUMNS,
            f"found {', '.join(data) or 'nothing'}, expected one of: {', '.join(_PROMPTS)}.",
        )
    by_person = [[result for result in results if result.get("type") == kind] for results in _answers(row)]
    by_person = [results for results in by_person if results]
    read = {"pairwise": _pairwise, "choices": _choices, "ranker": _ranker, "rating": _rating}[kind]
    return {"prompt": prompt, **read(data, by_person)}


def _value(result: dict[str, Any], key: str) -> Any:
    value = result.get("value")
    return value.get(key) if isinstance(value, dict) else None


def _two(data: dict[str, Any], results: Sequence[dict[str, Any]] = ()) -> tuple[str, str]:
    """Return the keys of the two responses: those that the tag names, else those whose names say so."""
    named = [name.strip() for name in str(results[0].get("to_name", "")).split(",")] if results else []
    if len(named) == 2 and set(named) <= set(data):
        return named[0], named[1]
    found = two_responses(data)
    if found is None:
        raise ColumnFault(
            "data",
            FaultReason.MISSING_COLUMNS,
            f"found {', '.join(data)}, which doesn't say where the two responses are. Name them answer1 and answer2.",
        )
    return found


def _pairwise(data: dict[str, Any], by_person: list[list[dict[str, Any]]]) -> Row:
    selected = the_one_answer([_value(results[0], "selected") for results in by_person], "annotations")
    names = _two(data, by_person[0])
    return {"completions": [data[n] for n in names], "ranks": read_choice(selected, "annotations", names, None)}


def _choices(data: dict[str, Any], by_person: list[list[dict[str, Any]]]) -> Row:
    names = _two(data)
    chosen = [_value(results[0], "choices") for results in by_person]
    choice = the_one_answer([c[0] if isinstance(c, list) and len(c) == 1 else c for c in chosen], "annotations")
    return {"completions": [data[n] for n in names], "ranks": read_choice(choice, "annotations", names, None)}


def _ranker(data: dict[str, Any], by_person: list[list[dict[str, Any]]]) -> Row:
    items = next((v for v in data.values() if isinstance(v, list) and v and all(_is_item(i) for i in v)), None)
    if items is None:
        raise ColumnFault(
            "data", FaultReason.MISSING_COLUMNS, f"found {', '.join(data)}, but no list of items with 'id' to rank."
        )
    order = the_one_answer([_ranking(_value(results[0], "ranker")) for results in by_person], "annotations")
    ids = [str(item["id"]) for item in items]
    texts = [next((item[key] for key in ("body", "html", "title") if item.get(key)), None) for item in items]
    return {"completions": texts, "ranks": ranks_of(order, ids, "annotations")}


def _is_item(item: Any) -> bool:
    return isinstance(item, dict) and "id" in item


def _ranking(value: Any) -> list[Any]:
    """Return the ids of a ranking: a list, or a dictionary with one; several are buckets, which aren't an order."""
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise ColumnFault(
            "annotations",
            FaultReason.UNCLEAR_CHOICE,
            f"the ranker's value is {shorten(value)}, expected one list of ids. Buckets don't say which is better.",
        )
    return value


def _rating(data: dict[str, Any], by_person: list[list[dict[str, Any]]]) -> Row:
    given: dict[str, list[float]] = {}
    for results in by_person:
        for result in results:
            name = str(result.get("to_name"))
            given.setdefault(name, []).append(read_number(_value(result, "rating"), "annotations", "the rating "))
    unknown = [name for name in given if name not in data]
    if unknown or not given:
        raise ColumnFault(
            "annotations",
            FaultReason.NO_ANSWER if not given else FaultReason.MISSING_COLUMNS,
            f"ratings of {', '.join(unknown)}, but data has {', '.join(data)}. Give the rated tag its column's name."
            if unknown
            else "nobody has submitted a rating.",
        )
    names = [name for name in data if name in given]
    return {
        "completions": [data[name] for name in names],
        "scores": [mean_answer(given[name], "annotations") for name in names],
    }
