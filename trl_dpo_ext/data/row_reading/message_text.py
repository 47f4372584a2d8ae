"""Message lists that a file stores as text: JSON, or the repr of a Python list, as CSV files have them."""

from __future__ import annotations

import ast
import json
from typing import Any


def parse_messages(value: Any) -> Any:
    """Return a text that holds a message list as that list, also within a list of texts; anything else as it is."""
    if isinstance(value, list):
        return [parse_messages(item) if isinstance(item, str) else item for item in value]
    messages = messages_in(value)
    return value if messages is None else messages


def messages_in(value: Any) -> list[dict[str, Any]] | None:
    """Return the message list that a text holds, or None if the value is something else.

    Example:
        >>> messages_in('[{"role": "user", "content": "Why?"}]')
        [{'role': 'user', 'content': 'Why?'}]
        >>> messages_in("Why?") is messages_in('["Why?"]') is None
        True
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found):
            return found
    return None
