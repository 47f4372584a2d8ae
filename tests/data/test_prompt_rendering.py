"""A prompt alone, as text and as token ids: those that training begins its rows with."""

from __future__ import annotations

from typing import Any

import pytest

from tests import helpers
from trl_dpo_ext.data.rendering.prompt_rendering import prompt_text, prompt_token_ids
from trl_dpo_ext.data.tokenize import tokenize_row

TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "x", "parameters": {}}}]
MESSAGES = [{"role": "user", "content": "the film"}]
GENERATION = "<|im_start|>assistant\n"


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize(
    "extra",
    [{}, {"tools": TOOLS}, {"chat_template_kwargs": {"date": "May 1"}}],
    ids=["plain", "tools", "template arguments"],
)
def test_a_prompt_of_messages_is_the_template_rendered(extra, add_bos):
    tokenizer = helpers.tiny_tokenizer(add_bos=add_bos)
    arguments: dict[str, Any] = {"tools": extra.get("tools"), **extra.get("chat_template_kwargs", {})}
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False, **arguments)
    assert text.endswith(GENERATION)
    assert prompt_text(MESSAGES, tokenizer, **extra) == text
    ids = prompt_token_ids(MESSAGES, tokenizer, **extra)
    assert tokenizer.decode(ids) == text
    row = {"prompt": MESSAGES, "completions": [[{"role": "assistant", "content": c}] for c in ("a", "b")], **extra}
    assert tokenize_row(row, tokenizer)["prompt_ids"] == ids


def test_tools_may_be_json_text():
    tokenizer = helpers.tiny_tokenizer()
    text = '[{"type": "function", "function": {"name": "look_up", "description": "x", "parameters": {}}}]'
    assert prompt_token_ids(MESSAGES, tokenizer, text) == prompt_token_ids(MESSAGES, tokenizer, TOOLS)
    assert "look_up" in prompt_text(MESSAGES, tokenizer, text)


def test_a_text_prompt_has_the_tokenizers_bos_and_no_eos():
    tokenizer = helpers.tiny_tokenizer(add_bos=True)
    assert prompt_text("the film", tokenizer) == "the film"
    assert tokenizer.decode(prompt_token_ids("the film", tokenizer)) == "<s>the film"
