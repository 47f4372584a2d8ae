"""Checks of one row's text. A check is a small function; docs/lint.md explains each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ..rendering.left_out_text import message_text
from .check import Check, check

# Each is f(row) -> what was found, or None, for a ranked row.

TEXT_CHECKS: list[Check] = []
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_REPLACEMENT = re.compile("\ufffd")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Tab, newline and carriage return are text. U+0080 to U+009F is what Windows-1252 becomes when read as Latin-1.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def prompt_and_responses(row: dict[str, Any]) -> Iterator[tuple[str, str | list[Any]]]:
    """Yield (place, content) of the prompt and of each response."""
    yield "the prompt", row["prompt"]
    for number, response in enumerate(row["completions"]):
        yield f"response {number}", response


def text_of(content: str | list[Any]) -> str:
    """Return a string as it is, and the texts of a message list, tool calls and reasoning included, one line each."""
    return content if isinstance(content, str) else "\n".join(map(message_text, content))


def equal_pair(items: list[Any], wanted: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """Return the indices of the first two equal items that are `wanted` (a function of both indices), or None."""
    for second in range(1, len(items)):
        for first in range(second):
            if items[first] == items[second] and wanted(first, second):
                return first, second
    return None


def _first_match(pattern: re.Pattern[str], row: dict[str, Any]) -> str | None:
    for place, content in prompt_and_responses(row):
        if match := pattern.search(text_of(content)):
            return f"{place} holds U+{ord(match.group()):04X} at character {match.start()}"
    return None


@check(
    TEXT_CHECKS,
    "replacement-character",
    "warning",
    "Read the source again with its right encoding: U+FFFD replaces a character that was lost.",
)
def _replacement_character(row: dict[str, Any]) -> str | None:
    return _first_match(_REPLACEMENT, row)


@check(TEXT_CHECKS, "lone-surrogate", "error", "Repair or remove the text: half of a character can't be tokenized.")
def _lone_surrogate(row: dict[str, Any]) -> str | None:
    return _first_match(_SURROGATE, row)


@check(
    TEXT_CHECKS, "control-character", "warning", "Remove the characters, or read the source with its right encoding."
)
def _control_character(row: dict[str, Any]) -> str | None:
    return _first_match(_CONTROL, row)


@check(
    TEXT_CHECKS,
    "unknown-role",
    "warning",
    f"Use roles that chat templates know ({', '.join(KNOWN_ROLES)}); many templates silently leave out other roles.",
)
def _unknown_role(row: dict[str, Any]) -> str | None:
    for place, content in prompt_and_responses(row):
        for message in content if isinstance(content, list) else ():
            if message["role"] not in KNOWN_ROLES:
                return f"{place} has the role {message['role']!r}"
    return None


@check(
    TEXT_CHECKS,
    "prompt-ends-with-assistant",
    "warning",
    "End the prompt with the message that the assistant answers; put the beginning of an answer in each response.",
)
def _prompt_ends_with_assistant(row: dict[str, Any]) -> str | None:
    prompt = row["prompt"]
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        return "the prompt's last message is the assistant's, so the response becomes a second turn in a row"
    return None


@check(
    TEXT_CHECKS,
    "foreign-turn",
    "warning",
    "Cut the response before the turn of the user or system: the model is trained on every token of the response.",
)
def _foreign_turn(row: dict[str, Any]) -> str | None:
    for number, response in enumerate(row["completions"]):
        for message in response if isinstance(response, list) else ():
            if message["role"] in ("user", "system", "developer"):
                return f"response {number} has a message by {message['role']!r}"
    return None


@check(
    TEXT_CHECKS,
    "repeated-response",
    "warning",
    "Keep one of the copies: together they count twice against the other responses.",
)
def _repeated_response(row: dict[str, Any]) -> str | None:
    # Copies with different ranks are refused when the row is read.
    pair = equal_pair(row["completions"], lambda first, second: True)
    return f"responses {pair[0]} and {pair[1]} are the same and share a rank" if pair else None
