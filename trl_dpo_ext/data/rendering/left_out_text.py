"""Find text, reasoning, tool calls and tools of a row that its chat template leaves out of what is trained on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..data_error import shorten
from .prompt_rendering import prompt_text, template_options
from .template_arguments import unread_argument
from .template_needs import fit_messages, join_blocks

# Templates write these tags in their own way, so only what stands between them is compared.
_TAGS = re.compile(r"</?(?:think|thinking|thought|reasoning)>")
_END_OF_REASONING = re.compile(r".*</(?:think|thinking|thought|reasoning)>", re.DOTALL)
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def left_out(row: Mapping[str, Any], tokens: Mapping[str, Any], tokenizer: Any) -> str | None:
    """Return what a chat template leaves out of a row, in words, or None.

    The reasoning of the assistant's earlier turns may be missing: models don't see it when they generate either.

    Args:
        row: a ranked row.
        tokens: the row as `tokenize_row` returns it, not truncated.
        tokenizer: has the chat template.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return None
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    if unread := unread_argument(row.get("chat_template_kwargs"), tools, tokenizer):
        return unread
    # Decoded tokens may differ from the text, so where they lack something the text itself decides.
    missing = _missing(_prompt_texts(prompt, tools or []), tokenizer.decode(tokens["prompt_ids"]))
    if missing:
        missing = _missing(missing, prompt_text(prompt, tokenizer, tools, row.get("chat_template_kwargs")))
    for what, text in missing:
        return f"{what} of the prompt ({shorten(text)})"
    for number, response in enumerate(row["completions"]):
        missing = _missing(_response_texts(response), tokenizer.decode(tokens["completion_ids"][number]))
        if missing:
            missing = _missing(missing, _rendered_response(row, response, tokenizer))
        for what, text in missing:
            return f"{what} of response {number} ({shorten(text)})"
    return None


def _missing(expected: Iterable[tuple[str, str]], rendered: str) -> list[tuple[str, str]]:
    return [(what, text) for what, text in expected if not _is_in(text, rendered)]


def message_text(message: Mapping[str, Any]) -> str:
    """Return all text of a message: content, reasoning, and tool calls as JSON, one line each."""
    content = message.get("content") or ""
    parts = [
        *(message.get(key) for key in REASONING_KEYS),
        content if isinstance(content, str) else join_blocks(content),
    ]
    parts += [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or []]
    return "\n".join(part for part in parts if isinstance(part, str) and part)


def _rendered_response(row: Mapping[str, Any], response: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Return what the template prints of a response: the whole text from where it leaves that of the prompt."""
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs")
    before = prompt_text(row["prompt"], tokenizer, tools, kwargs)
    options = {**template_options(tools, kwargs), "tokenize": False}
    whole = str(tokenizer.apply_chat_template(fit_messages([*row["prompt"], *response], tokenizer), **options))
    start = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    return whole[start:]


def _prompt_texts(prompt: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield (what it is, text) for what a prompt must print."""
    for message in prompt:
        content = _content(message)
        if message["role"] == "assistant":
            content = _END_OF_REASONING.sub("", content)
        yield from _pieces(f"the {message['role']} message", content)
        yield from _call_texts(message)
    for tool in tools:
        tool = json.loads(tool) if isinstance(tool, str) else tool
        name = tool.get("function", tool).get("name") if isinstance(tool, dict) else None
        if isinstance(name, str):
            yield "a tool", name


def _response_texts(response: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (what it is, text) for what a response must print."""
    for message in response:
        for key in REASONING_KEYS:
            if isinstance(message.get(key), str):
                yield from _pieces("the reasoning", message[key])
        reasoning = _END_OF_REASONING.match(_content(message))
        if reasoning:
            yield from _pieces("the reasoning", reasoning.group())
        yield from _pieces("the text", _END_OF_REASONING.sub("", _content(message)))
        yield from _call_texts(message)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else join_blocks(content)


def _pieces(what: str, text: str) -> Iterator[tuple[str, str]]:
    return ((what, piece.strip()) for piece in _TAGS.split(text) if piece.strip())


def _call_texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # not JSON: its text is compared
                arguments = json.loads(arguments or "{}")
        for text in (function.get("name"), *_leaves(arguments)):
            if isinstance(text, str) and text.strip():
                yield "a tool call", text.strip()


def _leaves(value: Any) -> Iterator[str]:
    """Yield the keys and values within the arguments of a call; nulls may be printed as nothing."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


def _is_in(text: str, rendered: str) -> bool:
    """Return whether a rendered text holds another, whatever its white space, also as it stands within JSON."""
    rendered = _squeezed(rendered)
    forms = (text, *(json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)))
    if text in ("true", "false"):  # Python's True
        return text in rendered.lower()
    return any(_squeezed(form) in rendered for form in forms)


def _squeezed(text: str) -> str:
    return "".join(text.split())
