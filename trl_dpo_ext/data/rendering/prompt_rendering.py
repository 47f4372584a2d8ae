"""A prompt as the model reads it: training and evaluation both render prompts here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .template_needs import fit_messages

Prompt = str | Sequence[Mapping[str, Any]]


def prompt_text(
    row_prompt: Prompt, tokenizer: Any, tools: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> str:
    """Return a prompt as text: a string as it is, messages through the chat template with its generation prompt.

    Args:
        row_prompt: a string or a message list.
        tokenizer: its chat template is used for messages.
        tools: the row's tool schemas, also as JSON text.
        chat_template_kwargs: the row's further arguments of the template.
    """
    if isinstance(row_prompt, str):
        return row_prompt
    options = template_options(tools, chat_template_kwargs)
    messages = fit_messages(row_prompt, tokenizer)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, **{**options, "tokenize": False}))


def prompt_token_ids(
    row_prompt: Prompt, tokenizer: Any, tools: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the token ids of a prompt alone, as the model reads it before it generates.

    Plain text is tokenized with `text_token_ids`, messages through the chat template, which writes its own special
    tokens. The arguments are those of `prompt_text`.

    Returns:
        [P] token ids.
    """
    if isinstance(row_prompt, str):
        return text_token_ids(row_prompt, tokenizer)
    options = template_options(tools, chat_template_kwargs)
    messages = fit_messages(row_prompt, tokenizer)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)["input_ids"])


def text_token_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of plain text, with the BOS that the tokenizer adds and without the EOS that it adds.

    An EOS after a prompt would end the text before the response, and one after a response that ends with EOS would
    train the model to end twice.
    """
    ids = list(tokenizer(text=text)["input_ids"])
    return ids[: len(ids) - _tokens_put_after_text(tokenizer)]


def _tokens_put_after_text(tokenizer: Any) -> int:
    """Return how many special tokens (EOS, SEP) the tokenizer puts after every text."""
    if not tokenizer.num_special_tokens_to_add():
        return 0
    bare = tokenizer(text="x", add_special_tokens=False)["input_ids"]
    reverse, bare = tokenizer(text="x")["input_ids"][::-1], bare[::-1]
    return next((n for n in range(len(reverse)) if reverse[n : n + len(bare)] == bare), 0)


def template_options(tools: Any, chat_template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of `apply_chat_template` for a row's tools and template arguments.

    Its result is then a dictionary with `input_ids`.
    """
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        "tokenize": True,
        "return_dict": True,
        **(chat_template_kwargs or {}),
    }
