"""Conversations, `messages` or ShareGPT's `conversations`, beside what judges their last answer.

See the dataset documentation of LLaMA-Factory (`conversations` with `chosen` and `rejected`, or `kto_tag`) and
of ms-swift (`messages` with `rejected_response`, or `label`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...data_error import ColumnFault, FaultReason, shorten
from ...row_reading.column_form import ExportForm, Row
from ...row_reading.message_text import read_messages

_CONVERSATIONS = ("messages", "conversations", "conversation")
_LABELS = ("label", "kto_tag")
_SCORES = ("score", "rating", "reward")
# Columns that hold the responses, so that the conversation is the prompt, and those read beside them.
_RESPONSES = (
    ("chosen", "rejected"),
    ("completion", "label"),
    ("completion", "score"),
    *(("completions", judged) for judged in ("ranks", "scores", "labels")),
)


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the form of conversations with a judgement."""
    held = [column for column in _CONVERSATIONS if column in columns]
    if not held or "prompt" in columns:
        return None  # beside a prompt, a conversation repeats it
    column = held[0]
    kind = "ShareGPT conversations" if _is_sharegpt(sample, column) else "conversations"
    for responses in _RESPONSES:
        if set(responses) <= set(columns):
            if responses == ("chosen", "rejected") and _are_whole(sample, column):
                return None
            return ExportForm(
                f"{kind} as prompts",
                (column, *responses),
                ("prompt", *responses),
                partial(_as_prompt, column=column, responses=responses),
            )
    if "rejected_response" in columns or "rejected_messages" in columns:
        rejected = "rejected_response" if "rejected_response" in columns else "rejected_messages"
        gives = ("prompt", "chosen", "rejected")
        return ExportForm(
            f"{kind}, each with a worse answer", (column, rejected), gives, partial(_rejected, column, rejected)
        )
    for names, standard in ((_LABELS, "label"), (_SCORES, "score")):
        if judged := [name for name in names if name in columns]:
            return ExportForm(
                f"{kind} with a {standard} for the last answer",
                (column, judged[0]),
                ("prompt", "completion", standard),
                partial(_last_answer, column=column, judged=judged[0], standard=standard),
            )
    if "chosen" in columns or "rejected" in columns:
        return None
    raise ColumnFault(
        column,
        FaultReason.MISSING_COLUMNS,
        f"found conversations in {column!r}, but nothing says how good their answers are. Expected 'chosen' and "
        "'rejected', 'rejected_response', 'label' (true or false), or 'score'.",
    )


def _messages(row: Row, column: str) -> list[Any]:
    found = read_messages(row[column], column)
    if not isinstance(found, list) or not found or not all(isinstance(m, dict) and "role" in m for m in found):
        raise ColumnFault(column, FaultReason.WRONG_TYPE, f"found {shorten(row[column])}, expected a message list.")
    return found


def _as_prompt(row: Row, column: str, responses: tuple[str, ...]) -> Row:
    return {"prompt": _messages(row, column), **{name: _answer(row[name]) for name in responses}}


def _answer(value: Any) -> Any:
    """Return a response beside a conversation, also where only its text was written."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return [_answer(item) for item in value]
    plain = isinstance(value, str) and value.strip() and value.lstrip()[0] not in "[{"
    return [{"role": "assistant", "content": value}] if plain else value


def _split(row: Row, column: str) -> tuple[list[Any], list[Any]]:
    """Return a conversation up to its last answer, and that answer."""
    messages = _messages(row, column)
    start = len(messages)
    while start and messages[start - 1].get("role") in ("assistant", "tool"):
        start -= 1
    if start == len(messages):
        raise ColumnFault(
            column,
            FaultReason.WRONG_ROLE,
            f"the conversation ends with the role {messages[-1].get('role')!r}, expected 'assistant': its last answer "
            "is what is judged.",
        )
    return messages[:start], messages[start:]


def _rejected(column: str, rejected: str, row: Row) -> Row:
    prompt, answer = _split(row, column)
    return {"prompt": prompt, "chosen": answer, "rejected": _answer(row[rejected])}


def _last_answer(row: Row, column: str, judged: str, standard: str) -> Row:
    prompt, answer = _split(row, column)
    return {"prompt": prompt, "completion": answer, standard: row[judged]}


def _is_sharegpt(sample: Sequence[Row], column: str) -> bool:
    first = next((row[column] for row in sample if row.get(column)), None)
    return (isinstance(first, list) and isinstance(first[0], dict) and "from" in first[0]) or "from" in str(first)[:12]


def _are_whole(sample: Sequence[Row], column: str) -> bool:
    """Return whether the chosen responses repeat the conversation, so that it needn't be read."""
    for row in sample[:1]:
        chosen = read_messages(row.get("chosen"), "chosen")
        return isinstance(chosen, list) and bool(chosen) and chosen[0].get("role") != "assistant"
    return False
