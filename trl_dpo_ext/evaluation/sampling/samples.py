"""Completions of prompts, and the steps that every sampler shares: check, tokenize, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...data.prompts import TokenizedPrompt, plain_prompt

AnyPrompt = str | TokenizedPrompt
"""Plain text, or the prompt of a row with the token ids that training gives it."""


@dataclass(frozen=True)
class Samples:
    """One completion per prompt.

    Attributes:
        prompts: [N] text of each prompt.
        completions: [N] the text that follows each prompt, with its leading space and without special tokens, so that
            prompt + completion is the whole text. The exception is a prompt whose end training leaves to the completion
            (a trailing space), if the model writes another end.
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


def check_sampling(prompts: Sequence[AnyPrompt], max_new_tokens: int, temperature: float, batch_size: int = 1) -> None:
    """Check the arguments of a sampler.

    Raises:
        ValueError: there are no prompts, or a number is out of range.
        TypeError: a prompt is neither a string nor a `TokenizedPrompt`.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: expected a list of at least one string or TokenizedPrompt.")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, AnyPrompt):
            raise TypeError(
                f"prompts[{row}] is a {type(prompt).__name__}, expected a string or a TokenizedPrompt. For a "
                "conversation, `tokenized_prompt({'prompt': messages}, tokenizer)` applies the chat template."
            )
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name}={value!r} is out of range, expected >= {least}.")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature!r} is out of range, expected >= 0.")


def text_of(prompt: AnyPrompt) -> str:
    """Return the text of a prompt."""
    return prompt if isinstance(prompt, str) else prompt.text


def tokenized(prompts: Sequence[AnyPrompt], tokenizer: Any) -> list[TokenizedPrompt]:
    """Return each prompt with its token ids.

    Tokenized prompts stay as they are. Plain text is tokenized as training tokenizes a plain-text prompt, but a BOS
    that the text has already is not doubled.

    Raises:
        ValueError: a prompt has no tokens.
    """
    found = []
    for row, prompt in enumerate(prompts):
        try:
            found.append(plain_prompt(prompt, tokenizer) if isinstance(prompt, str) else prompt)
        except ValueError as error:
            raise ValueError(f"prompts[{row}]: {error}") from None
    return found


def completed(
    prompts: Sequence[TokenizedPrompt], completion_ids: list[list[int]], tokenizer: Any, temperature: float
) -> Samples:
    """Return the samples: each prompt with the completion that a model drew."""
    return Samples(
        [prompt.text for prompt in prompts],
        [_completion_text(tokenizer, prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)],
        [list(prompt.token_ids) for prompt in prompts],
        completion_ids,
        temperature,
    )


def _completion_text(tokenizer: Any, prompt: TokenizedPrompt, completion_ids: list[int]) -> str:
    # Decode both together: some tokenizers drop the leading space of what they decode.
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    whole: str = tokenizer.decode([*prompt.token_ids, *completion_ids], **options)
    before: str = tokenizer.decode(list(prompt.token_ids), **options)
    # The end of a prompt that training leaves to the completion is not part of the completion's text.
    left_out = prompt.text[len(before) :] if prompt.text.startswith(before) else ""
    return whole[len(before) :].removeprefix(left_out)
