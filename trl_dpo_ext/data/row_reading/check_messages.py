"""Check the prompt and the responses of a row: types, roles, content."""

from __future__ import annotations

from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten

_TYPE_NAMES = {str: "a string", list: "a message list"}


def check_prompt(prompt: Any) -> None:
    """Check that a prompt is text or messages, and not empty.

    Raises:
        ColumnFault: it isn't.
    """
    if not isinstance(prompt, (str, list)):
        raise ColumnFault(
            "prompt", FaultReason.WRONG_TYPE, f"found {shorten(prompt)}, expected a string or a message list."
        )
    if isinstance(prompt, list):
        _check_messages("prompt", "the prompt", prompt)
    if not (prompt.strip() if isinstance(prompt, str) else any(_has_content(message) for message in prompt)):
        raise ColumnFault("prompt", FaultReason.EMPTY_PROMPT, f"the prompt is {shorten(prompt)}, expected text.")


def check_response(column: str, place: str, response: Any, prompt: str | list[Any]) -> None:
    """Check that a response is of its prompt's type, not empty, and begins with the assistant.

    Args:
        column: where it stands.
        place: its name in messages ("response 2").
        response: what the row has.
        prompt: the row's prompt, already checked.

    Raises:
        ColumnFault: it isn't.
    """
    if not isinstance(response, (str, list)):
        raise ColumnFault(
            column, FaultReason.WRONG_TYPE, f"{place} is {shorten(response)}, expected a string or a message list."
        )
    if type(response) is not type(prompt):
        raise ColumnFault(
            column,
            FaultReason.MIXED_TYPES,
            f"{place} is {_TYPE_NAMES[type(response)]}, but the prompt is {_TYPE_NAMES[type(prompt)]}; use one type "
            "for both.",
        )
    if not (response.strip() if isinstance(response, str) else response):
        raise ColumnFault(column, FaultReason.EMPTY_RESPONSE, f"{place} is {response!r}, expected text.")
    if isinstance(response, list):
        _check_messages(column, place, response)
        if response[0]["role"] != "assistant":
            raise ColumnFault(
                column,
                FaultReason.WRONG_ROLE,
                f"{place} begins with the role {response[0]['role']!r}, expected 'assistant': a response doesn't "
                "repeat the prompt.",
            )
        for message in response:
            if message["role"] == "assistant" and not _has_content(message):
                raise ColumnFault(
                    column, FaultReason.EMPTY_RESPONSE, f"{place} has an assistant message without content."
                )


def check_same_type(prompt: str | list[Any], conversational: bool) -> None:
    """Check that a prompt has the type of the rows before it, messages if `conversational`.

    Raises:
        ColumnFault: it has the other type.
    """
    if isinstance(prompt, list) is not conversational:
        raise ColumnFault(
            "prompt",
            FaultReason.MIXED_TYPES,
            f"found {shorten(prompt)}, but the rows before are {'message lists' if conversational else 'strings'}; "
            "use one type for all rows.",
        )


def _check_messages(column: str, place: str, messages: list[Any]) -> None:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ColumnFault(
                column,
                FaultReason.WRONG_TYPE,
                f"{place} holds {shorten(message)}, expected a message with 'role' and 'content'.",
            )
        content = message.get("content", "")
        if isinstance(content, list):
            for block in content:
                if not isinstance(block, dict) or block.get("type") != "text":
                    raise ColumnFault(
                        column,
                        FaultReason.IMAGES,
                        f"{place} holds the content block {shorten(block)}, but only text is supported; use TRL's "
                        "DPOTrainer for images.",
                    )
        elif not isinstance(content, str):
            raise ColumnFault(
                column, FaultReason.WRONG_TYPE, f"{place} holds the content {shorten(content)}, expected text."
            )


def _has_content(message: dict[str, Any]) -> bool:
    content = message.get("content", "")
    text = content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
    return bool(text.strip() or message.get("tool_calls"))
