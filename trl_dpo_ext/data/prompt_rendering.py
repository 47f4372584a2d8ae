"""A prompt as the model reads it: training and evaluation both render prompts here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
    return str(tokenizer.apply_chat_template(row_prompt, add_generation_prompt=True, **{**options, "tokenize": False}))


def prompt_token_ids(
    row_prompt: Prompt, tokenizer: Any, tools: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the token ids of a prompt alone, as the model reads it before it generates.

    Plain text is tokenized with the tokenizer's defaults (a BOS where it adds one), messages through the chat template,
    which writes its own special tokens. The arguments are those of `prompt_text`.

    Returns:
        [P] token ids.
    """
    if isinstance(row_prompt, str):
        return list(tokenizer(text=row_prompt)["input_ids"])
    options = template_options(tools, chat_template_kwargs)
    return list(tokenizer.apply_chat_template(row_prompt, add_generation_prompt=True, **options)["input_ids"])


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
