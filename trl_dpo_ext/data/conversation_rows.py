"""Helpers for converters: transcripts to messages, and answers as messages."""

from __future__ import annotations

from typing import Any

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_ROLES = {HUMAN: "user", ASSISTANT: "assistant"}


def answer_messages(text: str) -> list[dict[str, str]]:
    """Return a response as one message of the assistant."""
    return [{"role": "assistant", "content": text}]


def parse_transcript(text: str) -> list[dict[str, str]]:
    r"""Return the messages of a transcript that begins with a human turn.

    Raises:
        ValueError: it begins otherwise.

    Example:
        >>> parse_transcript("\n\nHuman: Hi!\n\nAssistant: Hello.\nHow are you?")
        [{'role': 'user', 'content': 'Hi!'}, {'role': 'assistant', 'content': 'Hello.\nHow are you?'}]
    """
    if not text.startswith(HUMAN):
        raise ValueError(f"a transcript begins with {HUMAN!r}, this one with {text[:30]!r}")
    messages = []
    while text:
        mark = HUMAN if text.startswith(HUMAN) else ASSISTANT
        ends = [end for end in (text.find(other, len(mark)) for other in _ROLES) if end >= 0]
        end = min(ends, default=len(text))
        messages.append({"role": _ROLES[mark], "content": text[len(mark) : end].strip()})
        text = text[end:]
    return messages


def split_transcripts(row: dict[str, Any]) -> tuple[str, str, str]:
    """Split the transcripts `chosen` and `rejected` of a row at their last answer.

    Returns:
        The prompt, which ends with the last assistant mark, and the two answers.

    Raises:
        ValueError: one is no transcript, or they differ before their last answer.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str) or ASSISTANT not in text:
            raise ValueError(f"{column} is no transcript with {ASSISTANT!r}: {str(text)[:60]!r}")
    end = chosen.rfind(ASSISTANT) + len(ASSISTANT)
    if not rejected.startswith(chosen[:end]) or ASSISTANT in rejected[end:]:
        raise ValueError("chosen and rejected differ before their last answer, so they answer different prompts")
    if HUMAN in chosen[end:] or HUMAN in rejected[end:]:
        raise ValueError("a human turn follows the last answer")
    return chosen[:end], chosen[end:], rejected[end:]
