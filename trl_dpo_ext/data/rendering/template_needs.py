"""Give a chat template the messages in the form that it reads: content as text or blocks, tool calls as it takes them.

Templates don't say what they read, and many print Python objects or nothing for another form. So each template is
asked once, with short messages whose text must come out again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

Message = Mapping[str, Any]

_WORDS = "Probing words"
_FUNCTION, _KEY = "probe_function", "probe_key"
_ABSENT = object()


def fit_messages(messages: Sequence[Message], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the messages in the form that the tokenizer's chat template reads.

    Text blocks are joined where a role's content is read as a string only, and strings become blocks where only blocks
    are read. The arguments of tool calls become a dictionary or JSON text, and a call without content gets the empty
    content with which the template prints it.

    Args:
        messages: with string content, text blocks or tool calls.
        tokenizer: has the chat template.
    """
    template = str(tokenizer.chat_template)
    return [_fit(message, tokenizer, template) for message in messages]


def _fit(message: Message, tokenizer: Any, template: str) -> dict[str, Any]:
    fitted = dict(message)
    content = fitted.get("content")
    if content and not _reads_content(tokenizer, template, fitted["role"], isinstance(content, list)):
        other = join_blocks(content) if isinstance(content, list) else to_blocks(content)
        if _reads_content(tokenizer, template, fitted["role"], isinstance(other, list)):
            fitted["content"] = other
    if fitted.get("tool_calls"):
        empty, as_dict = _call_form(tokenizer, template, "content" in fitted)
        if as_dict is not None:
            fitted["tool_calls"] = [_with_arguments(call, as_dict) for call in fitted["tool_calls"]]
            if not fitted.get("content"):
                fitted.pop("content", None)
                fitted |= {} if empty is _ABSENT else {"content": empty}
    return fitted


def join_blocks(content: Sequence[Mapping[str, Any]]) -> str:
    """Return the texts of text blocks as one string."""
    return "".join(block.get("text", "") for block in content)


def to_blocks(content: str) -> list[dict[str, str]]:
    """Return a string as a list of one text block."""
    return [{"type": "text", "text": content}]


def _with_arguments(call: Mapping[str, Any], as_dict: bool) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _with_arguments(call["function"], as_dict)}
    arguments = call.get("arguments")
    if as_dict and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except ValueError:
            return dict(call)
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else dict(call)
    if not as_dict and isinstance(arguments, Mapping):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return dict(call)


@lru_cache(maxsize=256)
def _reads_content(tokenizer: Any, template: str, role: str, as_blocks: bool) -> bool:
    """Return whether the template prints the content of a role's message in this form. `template` is for the cache."""
    form: Callable[[str], Any] = to_blocks if as_blocks else str
    before: dict[str, list[Message]] = {"assistant": [{"role": "user"}], "tool": [{"role": "user"}, _call({}, "")]}
    after: list[Message] = [] if role in ("user", "assistant", "tool") else [{"role": "user"}]
    probe = {"role": role, "content": form(_WORDS)}
    for other in ("w", to_blocks("w")):  # the messages around it may have to be of the other form
        around = [{**m, "content": other} if m == {"role": "user"} else m for m in before.get(role, [])]
        behind = [{**m, "content": other} for m in after]
        text = _render(tokenizer, [*around, probe, *behind])
        if _WORDS in text and not any(mark in text for mark in ("'type'", '"type"')):
            return True
    return False


@lru_cache(maxsize=64)
def _call_form(tokenizer: Any, template: str, has_content: bool) -> tuple[Any, bool | None]:
    """Return the empty content and the form of arguments (a dictionary?) with which the template prints tool calls.

    The row's own form of no content, "" if it `has_content`, is tried first. The second is None if the template prints
    calls in no form. `template` is for the cache.
    """
    for as_dict in (True, False):
        arguments: Any = {_KEY: _WORDS}
        for empty in ("", _ABSENT, None) if has_content else (_ABSENT, "", None):
            call = _call(arguments if as_dict else json.dumps(arguments), empty)
            for user in ("w", to_blocks("w")):
                text = _render(tokenizer, [{"role": "user", "content": user}, call])
                printed = all(part in text for part in (_FUNCTION, _KEY, _WORDS))
                if printed and not any(mark in text for mark in (f"'{_KEY}'", f'\\"{_KEY}', "None")):
                    return empty, as_dict
    return _ABSENT, None


def _call(arguments: Any, content: Any) -> dict[str, Any]:
    function = {"name": _FUNCTION, "arguments": arguments}
    call = {"type": "function", "id": "callprobe", "function": function}
    message = {"role": "assistant", "tool_calls": [call]}
    return message if content is _ABSENT else {**message, "content": content}


def _render(tokenizer: Any, messages: list[Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may fail in any way at what it doesn't read
        return ""
