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

    Plain text is tokenized with the tokenizer's defaults (a BOS where it adds one), but without an EOS at the end;
    messages go through the chat template, which writes its own special tokens. The arguments are those of
    `prompt_text`.

    Returns:
        [P] token ids.
    """
    if isinstance(row_prompt, str):
        return text_token_ids(row_prompt, tokenizer, ends=False)
    options = template_options(tools, chat_template_kwargs)
    messages = fit_messages(row_prompt, tokenizer)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)["input_ids"])


def text_token_ids(text: str, tokenizer: Any, *, ends: bool) -> list[int]:
    """Return the token ids of a plain text with exactly one EOS at its end, or with none.

    Some tokenizers add an EOS to every text: a prompt would end before its response, and a response end twice.

    Args:
        text: without EOS at its end, unless that is the text's own.
        tokenizer: may add BOS and EOS.
        ends: the text is whole, so it ends with EOS.
    """
    eos = tokenizer.eos_token
    if ends and eos and not text.endswith(eos):
        text += eos
    ids = list(tokenizer(text=text)["input_ids"])
    own = 1 if eos and text.endswith(eos) else 0
    if ids[-own - 1 :] == [tokenizer.eos_token_id] * (own + 1) and not text.endswith((eos or "") * (own + 1)):
        ids.pop()
    return ids


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
