"""One row of any accepted form to a ranked row: a prompt, K responses, their ranks (0 = best), scores and labels.

Every fault of a row is found here, and named with its column.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ..data_error import ColumnFault, DataError, FaultReason, shorten
from ..reads import Reads
from .check_messages import check_prompt, check_response, check_same_type
from .check_ranking import check_ranking
from .column_form import Order, Row
from .derived_labels import derive_labels
from .form_selection import COMMON, Reading, recognise
from .message_text import read_messages, read_responses
from .system_message import add_system_message
from .unread_order import refuse_unread_order
from .values import parse_list, read_number


def to_ranked(
    row: dict[str, Any],
    *,
    index: int,
    name: str,
    reads: Reads = Reads(),  # noqa: B008  it is frozen
    reading: Reading | None = None,
    conversational: bool | None = None,
    padded: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return one row of any accepted form as prompt, completions, ranks and whatever else training reads of it.

    Args:
        row: columns of one of the forms in `trl_dpo_ext.data.forms`; prompt and responses are strings, or all are
            message lists.
        index: row number, for messages.
        name: the dataset's name, for messages ("train").
        reads: what the losses read, which decides what is accepted: rows whose responses are all equally good, and
            single responses.
        reading: how the dataset's rows are read; None recognises it from this row alone.
        conversational: whether the rows before are message lists (True) or strings (False); None accepts either.
        padded: the columns in which Arrow stores None for keys that only other rows have; None means all. In other
            columns, nulls in tool calls and tools are the row's own and are kept.

    Returns:
        `prompt`, `completions` (K >= 2, or K >= 1 if `reads.single_responses`, in the order given), `ranks` (K ints
        without gaps, 0 = best, equal = tie); where the row has them `scores` (K floats, higher is better), `labels` (K
        bools, True = desirable, None = unknown; in every row if `reads.labels`), `tools` (list or None),
        `chat_template_kwargs` (dict), and with the losses that read them `reference_scores` (M floats) and `weight`.
        Keys that are None, which Arrow adds to messages, are removed.

    Raises:
        DataError: the row can't be trained on.

    Example:
        >>> to_ranked({"prompt": "1+1=", "completions": ["3", "2", "two"], "scores": [-1, 5, 5]}, index=0, name="train")
        {'prompt': '1+1=', 'completions': ['3', '2', 'two'], 'ranks': [1, 0, 0], 'scores': [-1.0, 5.0, 5.0]}
    """
    names: dict[str, str] = {}
    try:
        reading = recognise(tuple(row), [row]) if reading is None else reading
        names = {standard: given for given, standard in reading.names.items()}
        row = {
            column: _without_none(value) if padded is None or column in padded else _without_empty_keys(value, column)
            for column, value in row.items()
        }
        ranked = _to_ranked(_in_accepted_form(row, reading), row, reading, reads)
        if conversational is not None:
            check_same_type(ranked["prompt"], conversational)
        return ranked
    except ColumnFault as fault:
        column = names.get(fault.column, fault.column)
        raise DataError(f"{name} dataset, row {index}, column {column!r}: {fault.detail}", fault.reason) from None


def _in_accepted_form(row: Row, reading: Reading) -> Row:
    if reading.export is not None:
        row = {**{column: row[column] for column in COMMON if column in row}, **reading.export.convert(row)}
    else:
        row = {reading.names.get(column, column): value for column, value in row.items()}
    # Otherwise the model would be trained on the text of a list.
    for column in ("prompt", *reading.form.response_columns):
        if column == "completions":
            row[column] = read_responses(parse_list(row[column]), column)
        elif column in row:
            row[column] = read_messages(row[column], column)
    return row


def _to_ranked(row: Row, given: Row, reading: Reading, reads: Reads) -> dict[str, Any]:
    """Return an accepted form's row, ranked; `given` is the row as the dataset has it."""
    form = reading.form
    texts = form.read_texts(row)
    if "system" in row:
        texts = add_system_message(texts, row["system"])
    prompt, responses = texts.prompt, texts.responses
    if not responses:
        raise _too_few(form.response_columns[0], 0)
    check_prompt(prompt)
    for (column, place), response in zip(texts.places, responses, strict=True):
        check_response(column, place, response, prompt)
    order = form.read_order(row, len(responses))
    refuse_unread_order(given, len(responses), reading.read)
    judged = order.scores is not None or order.labels is not None
    if len(responses) < 2 and not (reads.single_responses and judged):
        raise _too_few(form.response_columns[0], 1, judged)
    check_ranking(responses, order, texts.places[-1][0], reads.ties or (reads.single_responses and judged))
    return _ranked(prompt, responses, order, reads) | _beside(row, reads)


def _too_few(column: str, found: int, judged: bool = False) -> ColumnFault:
    hint = " A loss that reads labels or scores also reads single ones (`trl-dpo-ext losses`)." if judged else ""
    return ColumnFault(column, FaultReason.FEWER_THAN_TWO_RESPONSES, f"found {found}, expected 2 or more.{hint}")


def _ranked(prompt: Any, responses: list[Any], order: Order, reads: Reads) -> dict[str, Any]:
    ranked = {"prompt": prompt, "completions": responses, "ranks": order.ranks}
    if order.scores is not None:
        ranked["scores"] = [float(score) for score in order.scores]
    if order.labels is not None and any(label is not None for label in order.labels):
        ranked["labels"] = list(order.labels)
    elif reads.labels:
        ranked["labels"] = derive_labels(order, reads)
    elif order.labels is not None:
        ranked["labels"] = list(order.labels)
    return ranked


def _beside(row: Row, reads: Reads) -> dict[str, Any]:
    """Return what stands beside prompt and responses in any form."""
    found: dict[str, Any] = {}
    if "tools" in row:
        found["tools"] = _tools(row["tools"])
    if "chat_template_kwargs" in row:
        kwargs = row["chat_template_kwargs"] or {}
        if not isinstance(kwargs, dict):
            raise ColumnFault(
                "chat_template_kwargs", FaultReason.WRONG_TYPE, f"found {shorten(kwargs)}, expected a dict."
            )
        found["chat_template_kwargs"] = kwargs
    if reads.reference_scores and row.get("reference_scores") is not None:
        found["reference_scores"] = _reference_scores(parse_list(row["reference_scores"]))
    if reads.weight and row.get("weight") is not None:
        found["weight"] = read_number(row["weight"], "weight", "it ")
        if found["weight"] < 0:
            raise ColumnFault(
                "weight", FaultReason.WRONG_TYPE, f"found {found['weight']}, expected 0 or more: the weight of the row."
            )
    return found


def _reference_scores(values: Any) -> list[float]:
    if not isinstance(values, list) or not values:
        raise ColumnFault(
            "reference_scores",
            FaultReason.WRONG_TYPE,
            f"found {shorten(values)}, expected a list of numbers: the scores of samples of the reference.",
        )
    return [read_number(value, "reference_scores", f"number {place} ") for place, value in enumerate(values)]


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
