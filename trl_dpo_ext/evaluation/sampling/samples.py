"""Completions of prompts, and the steps that every sampler shares: check, tokenize, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Samples:
    """One completion per prompt.

    Attributes:
        prompts: [N] the prompts.
        completions: [N] the text that follows each prompt, with its leading space and without special tokens, so that
            prompt + completion is the whole text.
        prompt_ids: [N] token ids of each prompt.
        completion_ids: [N] sampled token ids. They end with the end-of-sequence token if it was sampled.
        temperature: the sampling temperature.
    """

    prompts: list[str]
    completions: list[str]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    temperature: float

    def __len__(self) -> int:
        return len(self.prompts)


def check_sampling(prompts: Sequence[str], max_new_tokens: int, temperature: float, batch_size: int = 1) -> None:
    """Check the arguments of a sampler.

    Raises:
        ValueError: there are no prompts, or a number is out of range.
        TypeError: a prompt is not a string.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: expected a list of at least one string.")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompts[{row}] is a {type(prompt).__name__}, expected a string. Render a conversation with the "
                "tokenizer's chat template first."
            )
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name}={value!r} is out of range, expected >= {least}.")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature!r} is out of range, expected >= 0.")


def tokenized(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of each prompt, with at most one BOS.

    Raises:
        ValueError: a prompt has no tokens.
    """
    prompt_ids = [one_bos(list(ids), tokenizer) for ids in tokenizer(list(prompts))["input_ids"]]
    empty = next((row for row, ids in enumerate(prompt_ids) if not ids), None)
    if empty is not None:
        raise ValueError(f"prompts[{empty}]={prompts[empty]!r} has no tokens: the model has nothing to continue.")
    return prompt_ids


def one_bos(ids: list[int], tokenizer: Any) -> list[int]:
    """Drop the second BOS that the tokenizer adds to a text that already starts with one."""
    return ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids


def completion_text(tokenizer: Any, prompt_ids: list[int], completion_ids: list[int]) -> str:
    """Return the text that follows the prompt, with its leading space and without special tokens."""
    # Decode both together: some tokenizers drop the leading space of what they decode.
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    whole: str = tokenizer.decode([*prompt_ids, *completion_ids], **options)
    return whole[len(tokenizer.decode(prompt_ids, **options)) :]
