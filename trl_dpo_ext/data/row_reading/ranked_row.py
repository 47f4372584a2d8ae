"""One row of any accepted form to a ranked row: a prompt, K responses, their ranks (0 = best), and scores if given.

Every fault of a row is found here, and named with its column.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ..data_error import ColumnFault, DataError, FaultReason, shorten
from .check_messages import check_prompt, check_response, check_same_type
from .check_ranking import check_ranking
from .column_form import ColumnForm
from .form_selection import choose_form
from .message_text import parse_messages


def to_ranked(
    row: dict[str, Any],
    *,
    index: int,
    name: str,
    reads_ties: bool = False,
    conversational: bool | None = None,
    padded: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return one row of any accepted form as prompt, completions, ranks and whatever else training reads of it.

    Args:
        row: columns of one of the forms in `trl_dpo_ext.data.forms`; prompt and responses are strings, or all are
            message lists.
        index: row number, for messages.
        name: the dataset's name, for messages ("train").
        reads_ties: accept a row whose responses are all equally good.
        conversational: whether the rows before are message lists (True) or strings (False); None accepts either.
        padded: the columns in which Arrow stores None for keys that only other rows have; None means all. In other
            columns, nulls in tool calls and tools are the row's own and are kept.

    Returns:
        `prompt`, `completions` (K >= 2, in the order given), `ranks` (K ints without gaps, 0 = best, equal = tie);
        `scores` (K floats, higher is better), `tools` (list or None) and `chat_template_kwargs` (dict) where the row
        has them. Keys that are None, which Arrow adds to messages, are removed.

    Raises:
        DataError: the row can't be trained on.

    Example:
        >>> to_ranked({"prompt": "1+1=", "completions": ["3", "2", "two"], "scores": [-1, 5, 5]}, index=0, name="train")
        {'prompt': '1+1=', 'completions': ['3', '2', 'two'], 'ranks': [1, 0, 0], 'scores': [-1.0, 5.0, 5.0]}
    """
    try:
        form = choose_form(tuple(row))
        row = {
            column: _without_none(value) if padded is None or column in padded else _without_empty_keys(value, column)
            for column, value in row.items()
        }
        # Otherwise the model would be trained on the text of the list.
        row |= {column: parse_messages(row[column]) for column in ("prompt", *form.response_columns) if column in row}
        ranked = _to_ranked(row, form, reads_ties)
        if conversational is not None:
            check_same_type(ranked["prompt"], conversational)
        return ranked
    except ColumnFault as fault:
        raise DataError(f"{name} dataset, row {index}, column {fault.column!r}: {fault.detail}", fault.reason) from None


def _to_ranked(row: dict[str, Any], form: ColumnForm, reads_ties: bool) -> dict[str, Any]:
    texts = form.read_texts(row)
    prompt, responses = texts.prompt, texts.responses
    if len(responses) < 2:
        raise ColumnFault(
            form.response_columns[0],
            FaultReason.FEWER_THAN_TWO_RESPONSES,
            f"found {len(responses)}, expected 2 or more.",
        )
    check_prompt(prompt)
    for (column, place), response in zip(texts.places, responses, strict=True):
        check_response(column, place, response, prompt)
    order = form.read_order(row, len(responses))
    check_ranking(responses, order, texts.places[-1][0], reads_ties)

    ranked = {"prompt": prompt, "completions": responses, "ranks": order.ranks}
    if order.scores is not None:
        ranked["scores"] = [float(score) for score in order.scores]
    if "tools" in row:
        ranked["tools"] = _tools(row["tools"])
    if "chat_template_kwargs" in row:
        kwargs = row["chat_template_kwargs"] or {}
        if not isinstance(kwargs, dict):
            raise ColumnFault(
                "chat_template_kwargs", FaultReason.WRONG_TYPE, f"found {shorten(kwargs)}, expected a dict."
            )
        ranked["chat_template_kwargs"] = kwargs
    return ranked


def _tools(tools: Any) -> list[Any] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ColumnFault(
                "tools", FaultReason.WRONG_TYPE, f"found {shorten(tools)}, which isn't JSON ({error})."
            ) from None
    if not isinstance(tools, list | None):
        raise ColumnFault("tools", FaultReason.WRONG_TYPE, f"found {shorten(tools)}, expected a list of tool schemas.")
    return tools


def _without_none(value: Any) -> Any:
    """Return the value without the None that Arrow adds for keys that other rows have."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _without_empty_keys(value: Any, column: str) -> Any:
    """Return the value without the keys of messages that are None; tools and arguments of calls stay as they are."""
    if column == "tools" or not isinstance(value, list):
        return value
    if all(isinstance(item, list) for item in value):
        return [_without_empty_keys(item, column) for item in value]
    return [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in value]
