"""Checks of one row's tokens. A check is a small function; docs/lint.md explains each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..end_tokens import end_token_ids
from .check import Check, check
from .text_checks import equal_pair

# Each is f(tokens, context) -> what was found, or None. `tokens` has prompt_ids, completion_ids, ranks and, where they
# come from `tokenize_row`, merged; the data of a trainer are already cut to max_length.

TOKEN_CHECKS: list[Check] = []


@dataclass(frozen=True)
class TokenContext:
    """What the checks of tokens need besides the tokens.

    Attributes:
        tokenizer: also decodes tokens for messages.
        end_ids: ids with which a response may end.
        max_length: tokens of prompt and completion together; None for no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    max_length: int | None = None

    def room(self, prompt_ids: list[int]) -> int | None:
        """Return how many tokens `max_length` leaves for a response; None without a limit."""
        return None if self.max_length is None else max(0, self.max_length - len(prompt_ids))

    def text(self, ids: list[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(self.tokenizer.decode(ids))

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer begins a plain text with BOS."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("x")["input_ids"][:1] == [bos]


def accepted_end_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> frozenset[int]:
    """Return the ids with which a response may end: those that stop generation, and the tokenizer's EOS."""
    # Plain text is trained with the tokenizer's EOS, whatever the generation config says.
    return frozenset([*end_token_ids(tokenizer, generation_config), *end_token_ids(tokenizer)])


@check(
    TOKEN_CHECKS,
    "missing-eos",
    "error",
    "Use a chat template that ends the assistant's turn with a token that stops generation (EOS, or one of the "
    "model's generation config); otherwise the model doesn't learn to stop.",
)
def _missing_eos(tokens: dict[str, Any], context: TokenContext) -> str | None:
    room = context.room(tokens["prompt_ids"])
    for number, ids in enumerate(tokens["completion_ids"]):
        if not ids or (room is not None and len(ids) >= room):
            continue  # cut off, which `truncated-response` counts
        last = next((i for i in reversed(range(len(ids))) if ids[i] in context.end_ids), None)
        # ChatML ends a turn with EOS and a newline.
        if last is None or context.text(ids[last + 1 :]).strip():
            return f"response {number} ends with {context.text(ids[-5:])!r}"
    return None


@check(
    TOKEN_CHECKS,
    "doubled-bos",
    "error",
    "Remove BOS from the text: the tokenizer adds it already, and the model has never seen two.",
)
def _doubled_bos(tokens: dict[str, Any], context: TokenContext) -> str | None:
    bos = context.tokenizer.bos_token_id
    if bos is not None and tokens["prompt_ids"][:2] == [bos, bos]:
        return f"the tokens begin with {context.tokenizer.bos_token!r} twice"
    return None


@check(
    TOKEN_CHECKS,
    "missing-bos",
    "warning",
    "Make the chat template begin with BOS, as the tokenizer does for plain text.",
)
def _missing_bos(tokens: dict[str, Any], context: TokenContext) -> str | None:
    ids = tokens["prompt_ids"]
    if context.adds_bos and ids and ids[0] != context.tokenizer.bos_token_id:
        return f"the tokens begin with {context.text(ids[:5])!r}"
    return None


@check(
    TOKEN_CHECKS,
    "boundary-merge",
    "warning",
    "End prompts where a token ends (the space belongs to the response), or use a template that renders the prompt "
    "the same with and without a response.",
)
def _boundary_merge(tokens: dict[str, Any], context: TokenContext) -> str | None:
    if merged := tokens.get("merged", 0):
        return f"the last tokens of the prompt ({merged}) change when a response follows"
    return None


@check(
    TOKEN_CHECKS,
    "identical-tokens",
    "warning",
    "Raise max_length, or remove one of the two: the part in which they differ is cut off, or makes no tokens.",
)
def _identical_tokens(tokens: dict[str, Any], context: TokenContext) -> str | None:
    room, ranks = context.room(tokens["prompt_ids"]), tokens["ranks"]
    if room == 0:
        return None  # `prompt-too-long` counts it
    pair = equal_pair([ids[:room] for ids in tokens["completion_ids"]], lambda a, b: ranks[a] != ranks[b])
    return f"responses {pair[0]} and {pair[1]} are the same tokens, but not equally good" if pair else None
