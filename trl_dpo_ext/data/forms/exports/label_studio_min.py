"""Label Studio's JSON-MIN and CSV exports: the data's own columns, and the result of the tag Pairwise beside them.

See the documentation of the export formats and the SDK's converter: a result stands under its tag's name,
as a list of values; in CSV, as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten
from ...row_reading.column_form import ExportForm, Row
from ._choice import read_choice, two_responses

_MARKS = {"annotation_id", "annotator"}


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the form of a JSON-MIN or CSV export with a pairwise result, or a choice."""
    if not set(columns) >= _MARKS or "prompt" not in columns:
        return None
    names = two_responses(columns)
    results = [c for c in columns if any(_selected(row.get(c)) is not None for row in sample)]
    if names is None or len(results) != 1:
        raise ColumnFault(
            results[0] if results else "annotation_id",
            FaultReason.MISSING_COLUMNS,
            "this is a Label Studio export, expected two responses (answer1 and answer2) and one result of the tag "
            f"Pairwise; found {', '.join(columns)}. The JSON export says more about each result.",
        )
    read = ("prompt", *names, results[0])
    convert = partial(_convert, names=names, column=results[0])
    return ExportForm("Label Studio export, pairwise", read, ("prompt", "completions", "ranks"), convert)


def _selected(value: Any) -> Any:
    """Return the side that a result of Pairwise selects, or None if the value isn't one."""
    if isinstance(value, str) and "selected" in value:
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.get("selected") if isinstance(value, dict) else None


def _convert(row: Row, names: tuple[str, str], column: str) -> Row:
    selected = _selected(row[column])
    if selected is None:
        raise ColumnFault(column, FaultReason.NO_ANSWER, f"found {shorten(row[column])}, which selects no response.")
    ranks = read_choice(selected, column, names, None)
    return {"prompt": row["prompt"], "completions": [row[name] for name in names], "ranks": ranks}
