"""A column `system`: the system message of each row's conversation."""

from __future__ import annotations

from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten
from .column_form import PromptAndResponses

COLUMN = "system"


def add_system_message(texts: PromptAndResponses, system: Any) -> PromptAndResponses:
    """Return the texts of a row as a conversation that begins with a system message.

    A prompt that is text becomes the user's message, and responses that are text become the assistant's: only a
    conversation has a system message.

    Args:
        texts: of the row.
        system: what the column has; None and "" add no message, but the row is a conversation all the same, so that
            all rows of a dataset have one type.

    Raises:
        ColumnFault: it isn't text, or the prompt begins with another system message.
    """
    if system is not None and not isinstance(system, str):
        raise ColumnFault(COLUMN, FaultReason.WRONG_TYPE, f"found {shorten(system)}, expected text.")
    prompt, responses = texts.prompt, list(texts.responses)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else prompt
        responses = [[{"role": "assistant", "content": r}] if _is_text(r) else r for r in responses]
    if not isinstance(prompt, list) or not (system or "").strip():
        return PromptAndResponses(prompt, responses, texts.places)
    first = prompt[0] if prompt and isinstance(prompt[0], dict) else {}
    if first.get("role") == "system":
        if first.get("content") != system:
            raise ColumnFault(
                COLUMN,
                FaultReason.TWO_FORMS,
                f"found {shorten(system)}, but the prompt begins with another system message "
                f"({shorten(first.get('content'))}). Keep one of them.",
            )
        return PromptAndResponses(prompt, responses, texts.places)
    return PromptAndResponses([{"role": "system", "content": system}, *prompt], responses, texts.places)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
