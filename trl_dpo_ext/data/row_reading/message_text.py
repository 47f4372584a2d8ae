"""Messages as other tools write them: lists stored as text, ShareGPT's `from` and `value`, a single message."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten

# ShareGPT's names of roles, and those that LLaMA-Factory and axolotl accept beside them.
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
# Text that begins as a message does, within a list or alone.
_BEGINS_LIKE_MESSAGES = re.compile(r"""\s*(?:(?:np\.)?array\()?\[?\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")


def read_messages(value: Any, column: str) -> Any:
    """Return what holds messages as message lists with `role` and `content`; anything else as it is.

    A message list may be text (JSON, or as Python prints it), its messages may have ShareGPT's keys `from` and
    `value`, and a single message stands for a list of one. Lists of any of these are read item by item.

    Args:
        value: a prompt, a response, or a list of responses.
        column: where it stands, for messages.

    Raises:
        ColumnFault: a text begins like messages but can't be read as such, or a ShareGPT role is unknown. The model
            would otherwise be trained on the text of the list.
    """
    if isinstance(value, str):
        found = messages_in(value)
        if found is None:
            if _BEGINS_LIKE_MESSAGES.match(value):
                raise ColumnFault(
                    column,
                    FaultReason.WRONG_TYPE,
                    f"{shorten(value)} begins like messages stored as text, but is neither JSON nor a Python list. "
                    "Store message lists as JSON (`json.dumps`).",
                )
            return value
        value = found
    if isinstance(value, dict) and _is_message(value):
        return [_standard(value, column)]
    if isinstance(value, list):
        if value and all(isinstance(item, dict) and _is_message(item) for item in value):
            return [_standard(message, column) for message in value]
        return [read_messages(item, column) if isinstance(item, str | list | dict) else item for item in value]
    return value


def read_responses(value: Any, column: str) -> Any:
    """Return a list of responses, each as `read_messages` returns it; a message in it is a response of its own."""
    if isinstance(value, list):
        return [read_messages(item, column) if isinstance(item, str | list | dict) else item for item in value]
    return value


def messages_in(value: Any) -> list[dict[str, Any]] | None:
    """Return the message list that a text holds, or None if the value is something else.

    Example:
        >>> messages_in('[{"role": "user", "content": "Why?"}]')
        [{'role': 'user', 'content': 'Why?'}]
        >>> messages_in("Why?") is messages_in('["Why?"]') is None
        True
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        found = [found] if isinstance(found, dict) else found
        if isinstance(found, list) and found and all(isinstance(m, dict) and _is_message(m) for m in found):
            return found
    return None


def _is_message(value: dict[str, Any]) -> bool:
    # A text may be JSON of its own with a key "from" or "role"; a message also says what it holds.
    return ("role" in value and bool({"content", "tool_calls"} & set(value))) or ("from" in value and "value" in value)


def _standard(message: dict[str, Any], column: str) -> dict[str, Any]:
    if "role" in message or "from" not in message:
        return message
    role = _SHAREGPT_ROLES.get(str(message["from"]).lower())
    if role is None:
        raise ColumnFault(
            column,
            FaultReason.WRONG_ROLE,
            f"a message is from {shorten(message['from'])}, expected one of: {', '.join(_SHAREGPT_ROLES)}.",
        )
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": role, "content": message["value"], **rest}
