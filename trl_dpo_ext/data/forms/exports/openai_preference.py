"""OpenAI's preference fine-tuning files: input.messages, preferred_output, non_preferred_output.

See OpenAI's guide to direct preference optimization.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten
from ...row_reading.column_form import ExportForm, Row

_COLUMNS = ("input", "preferred_output", "non_preferred_output")


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the form of OpenAI's preference files."""
    if not set(_COLUMNS) <= set(columns):
        return None
    has_tools = any(isinstance(value := row.get("input"), dict) and value.get("tools") for row in sample)
    gives = ("prompt", "chosen", "rejected", *(["tools"] if has_tools else []))
    return ExportForm("OpenAI preference file", _COLUMNS, gives, _convert)


def _convert(row: Row) -> Row:
    given: Any = row["input"]
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ColumnFault(
                "input", FaultReason.WRONG_TYPE, f"found {shorten(given)}, which isn't JSON ({error})."
            ) from None
    if not isinstance(given, dict) or "messages" not in given:
        raise ColumnFault(
            "input", FaultReason.WRONG_TYPE, f"found {shorten(given)}, expected an object with 'messages'."
        )
    found = {"prompt": given["messages"], "chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {**found, "tools": given["tools"]} if given.get("tools") else found
