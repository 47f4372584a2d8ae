"""What is looked for in one row: its text and its tokens. A check is a small function; docs/lint.md explains each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Check:
    """Something the linter finds.

    Attributes:
        id: stable name, for CI and docs.
        severity: "error" can't or mustn't be trained on, "warning" costs quality, "info" is worth a look.
        advice: what to do.
        run: the function that finds it; None where reading the row finds it.
    """

    id: str
    severity: Severity
    advice: str
    run: Callable[..., Any] | None = None


def check(to: list[Check], id: str, severity: Severity, advice: str) -> Callable[[Any], Any]:
    """Return a decorator that adds a function to a list of checks."""

    def add(function: Any) -> Any:
        to.append(Check(id, severity, advice, function))
        return function

    return add


# Reading a row: what rows.py refuses, by its reasons, and what else is met on the way.

_FAULTS = {
    "missing columns": "Rename or add columns so that they are one of the accepted forms.",
    "two forms": "Keep either chosen and rejected, or completions.",
    "no rows": "Choose another split, or fill this one.",
    "unreadable row": "Correct the row, or choose the converter that fits the dataset.",
    "images": "Train on images with TRL's DPOTrainer, or remove them.",
    "wrong type": "Give texts as strings or message lists, and ranks and scores as lists of numbers.",
    "mixed types": "Write all prompts and responses as strings, or all as message lists.",
    "fewer than two responses": "Give each prompt two responses or more, or remove the row.",
    "empty prompt": "Fill in the prompt, or remove the row.",
    "empty response": "Remove the response (a prompt needs two), or the row.",
    "wrong role": "Let each response hold only what the assistant says after the prompt.",
    "identical responses": "Remove one of the two, or give both the same rank.",
    "length mismatch": "Give one rank (or score) per response.",
    "NaN or infinity": "Give finite ranks and scores, or remove the row.",
    "rank not an integer": "Number ranks 0 (best), 1, 2, ...; ties share one. Numbers that measure quality are scores.",
    "negative rank": "Number ranks 0 (best), 1, 2, ...",
    "ranks and scores disagree": "Rank 0 is the best, and a higher score is better: correct or remove one column.",
}


def fault_id(reason: str) -> str:
    """Return the id of a reason that a `DataError` gives.

    Example:
        >>> fault_id("NaN or infinity")
        'nan-or-infinity'
    """
    return reason.lower().replace(" ", "-")


READING = [
    *(Check(fault_id(reason), "error", advice) for reason, advice in _FAULTS.items()),
    Check(
        "unreadable-file",
        "error",
        "Correct the file where the message says. Text has to be UTF-8; `iconv` converts other encodings.",
    ),
    Check(
        "all-tied",
        "warning",
        "Remove the row, or use a loss that reads ties (`trl-dpo-ext losses --reads ties` lists them).",
    ),
    Check(
        "cannot-tokenize",
        "error",
        "Use roles that the model's chat template takes, in the order it takes them, or another template.",
    ),
]

# Checks of a row's text: f(row) -> what was found, or None. The row has the internal form.

ROW_CHECKS: list[Check] = []
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_REPLACEMENT = re.compile("\ufffd")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Tab, newline and carriage return are text. U+0080 to U+009F is what Windows-1252 becomes when read as Latin-1.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def contents(row: dict[str, Any]) -> Iterator[tuple[str, str | list[Any]]]:
    """Yield (place, content) of the prompt and of each response."""
    yield "the prompt", row["prompt"]
    for number, response in enumerate(row["completions"]):
        yield f"response {number}", response


def text_of(content: str | list[Any]) -> str:
    """Return a text, or the texts of a message list, a line each."""
    if isinstance(content, str):
        return content
    texts = (message.get("content", "") for message in content)
    return "\n".join(t if isinstance(t, str) else "".join(block.get("text", "") for block in t) for t in texts)


def _first(pattern: re.Pattern[str], row: dict[str, Any]) -> str | None:
    for place, content in contents(row):
        if match := pattern.search(text_of(content)):
            return f"{place} holds U+{ord(match.group()):04X} at character {match.start()}"
    return None


def _same_pair(items: list[Any], wanted: Callable[[int, int], bool]) -> tuple[int, int] | None:
    for second in range(1, len(items)):
        for first in range(second):
            if items[first] == items[second] and wanted(first, second):
                return first, second
    return None


@check(
    ROW_CHECKS,
    "replacement-character",
    "warning",
    "Read the source again with its right encoding: U+FFFD stands where a character was lost.",
)
def _replacement_character(row: dict[str, Any]) -> str | None:
    return _first(_REPLACEMENT, row)


@check(ROW_CHECKS, "lone-surrogate", "error", "Repair or remove the text: half of a character can't be tokenized.")
def _lone_surrogate(row: dict[str, Any]) -> str | None:
    return _first(_SURROGATE, row)


@check(ROW_CHECKS, "control-character", "warning", "Remove the characters, or read the source with its right encoding.")
def _control_character(row: dict[str, Any]) -> str | None:
    return _first(_CONTROL, row)


@check(
    ROW_CHECKS,
    "unknown-role",
    "warning",
    f"Use roles that chat templates know ({', '.join(KNOWN_ROLES)}); many templates leave others out without an error.",
)
def _unknown_role(row: dict[str, Any]) -> str | None:
    for place, content in contents(row):
        for message in content if isinstance(content, list) else ():
            if message["role"] not in KNOWN_ROLES:
                return f"{place} has the role {message['role']!r}"
    return None


@check(
    ROW_CHECKS,
    "prompt-ends-with-assistant",
    "warning",
    "End the prompt with what the assistant answers; an answer's beginning belongs to each response.",
)
def _prompt_ends_with_assistant(row: dict[str, Any]) -> str | None:
    prompt = row["prompt"]
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        return "the prompt's last message is the assistant's, so the response becomes a second turn in a row"
    return None


@check(
    ROW_CHECKS,
    "foreign-turn",
    "warning",
    "Cut the response before the turn of the user or system: the model is trained on every token of it.",
)
def _foreign_turn(row: dict[str, Any]) -> str | None:
    for number, response in enumerate(row["completions"]):
        for message in response if isinstance(response, list) else ():
            if message["role"] in ("user", "system", "developer"):
                return f"response {number} has a message by {message['role']!r}"
    return None


@check(
    ROW_CHECKS,
    "repeated-response",
    "warning",
    "Keep one of the copies: against the other responses they count twice.",
)
def _repeated_response(row: dict[str, Any]) -> str | None:
    # Copies with different ranks are refused when the row is read.
    pair = _same_pair(row["completions"], lambda first, second: True)
    return f"responses {pair[0]} and {pair[1]} are the same and share a rank" if pair else None


# Checks of a row's tokens: f(tokens, facts) -> what was found, or None. Tokens are prompt_ids, completion_ids, ranks
# and, as `tokenize_row` gives them, merged; the training data of a trainer are cut to max_length already.

TOKEN_CHECKS: list[Check] = []


@dataclass(frozen=True)
class TokenFacts:
    """What token checks know besides the tokens.

    Attributes:
        tokenizer: also decodes what messages show.
        stops: ids that end a response when the model generates.
        max_length: tokens of prompt and completion together; None for no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: frozenset[int]
    max_length: int | None = None

    def room(self, prompt_ids: list[int]) -> int | None:
        """Return how many tokens `max_length` leaves for a response; None for any number."""
        return None if self.max_length is None else max(0, self.max_length - len(prompt_ids))

    def text(self, ids: list[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(self.tokenizer.decode(ids))

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer begins a plain text with BOS."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("x")["input_ids"][:1] == [bos]


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> frozenset[int]:
    """Return the ids that end a response: the tokenizer's EOS, and those of the model's generation config."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (tokenizer.eos_token_id, *ids) if i is not None)


@check(
    TOKEN_CHECKS,
    "missing-eos",
    "error",
    "Use a chat template that ends the assistant's turn with a token that stops generation (EOS, or one of the "
    "model's generation config); else the model doesn't learn to stop.",
)
def _missing_eos(tokens: dict[str, Any], facts: TokenFacts) -> str | None:
    room = facts.room(tokens["prompt_ids"])
    for number, ids in enumerate(tokens["completion_ids"]):
        if not ids or (room is not None and len(ids) >= room):
            continue  # cut off, which `truncated-response` counts
        last = next((i for i in reversed(range(len(ids))) if ids[i] in facts.stops), None)
        # ChatML ends a turn with EOS and a newline.
        if last is None or facts.text(ids[last + 1 :]).strip():
            return f"response {number} ends with {facts.text(ids[-5:])!r}"
    return None


@check(
    TOKEN_CHECKS,
    "doubled-bos",
    "error",
    "Take BOS out of the text: the tokenizer writes it already, and the model has never seen two.",
)
def _doubled_bos(tokens: dict[str, Any], facts: TokenFacts) -> str | None:
    bos = facts.tokenizer.bos_token_id
    if bos is not None and tokens["prompt_ids"][:2] == [bos, bos]:
        return f"the tokens begin with {facts.tokenizer.bos_token!r} twice"
    return None


@check(
    TOKEN_CHECKS,
    "missing-bos",
    "warning",
    "Let the chat template begin with BOS, as the tokenizer begins every plain text.",
)
def _missing_bos(tokens: dict[str, Any], facts: TokenFacts) -> str | None:
    ids = tokens["prompt_ids"]
    if facts.adds_bos and ids and ids[0] != facts.tokenizer.bos_token_id:
        return f"the tokens begin with {facts.text(ids[:5])!r}"
    return None


@check(
    TOKEN_CHECKS,
    "boundary-merge",
    "warning",
    "End prompts where a token ends (the space belongs to the response), or use a template that renders the prompt "
    "the same with and without a response.",
)
def _boundary_merge(tokens: dict[str, Any], facts: TokenFacts) -> str | None:
    if merged := tokens.get("merged", 0):
        return f"the last tokens of the prompt ({merged}) change when a response follows"
    return None


@check(
    TOKEN_CHECKS,
    "identical-tokens",
    "warning",
    "Raise max_length, or remove one of the two: what they differ in is cut off, or makes no tokens.",
)
def _identical_tokens(tokens: dict[str, Any], facts: TokenFacts) -> str | None:
    room, ranks = facts.room(tokens["prompt_ids"]), tokens["ranks"]
    if room == 0:
        return None  # `prompt-too-long` counts it
    pair = _same_pair([ids[:room] for ids in tokens["completion_ids"]], lambda a, b: ranks[a] != ranks[b])
    return f"responses {pair[0]} and {pair[1]} are the same tokens, but not equally good" if pair else None
