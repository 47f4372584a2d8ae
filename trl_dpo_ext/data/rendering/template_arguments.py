"""Find arguments of a row's `chat_template_kwargs` that the chat template never reads, such as misspelt ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from ...registry import did_you_mean

# What `apply_chat_template` reads itself, or hands to every template.
_ARGUMENTS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


class _Generation(Extension):
    """Reads the `{% generation %}` of templates for training, which is no tag of Jinja's."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def _read_by(template: str) -> frozenset[str] | None:
    """Return the names that a template takes from outside, or None if it can't be parsed."""
    try:
        parsed = Environment(extensions=[_Generation, loopcontrols]).parse(template)
    except TemplateSyntaxError:
        return None
    return frozenset(meta.find_undeclared_variables(parsed))


def unread_argument(kwargs: Mapping[str, Any] | None, tools: Any, tokenizer: Any) -> str | None:
    """Return which argument the chat template never reads, in words, or None.

    A key that is None is no argument: Arrow puts it into rows without the key.

    Args:
        kwargs: the row's `chat_template_kwargs`.
        tools: the row's tools, for which some tokenizers have another template.
        tokenizer: has the chat template.
    """
    given = [key for key, value in (kwargs or {}).items() if value is not None and key not in _ARGUMENTS]
    if not given:
        return None
    read = _read_by(tokenizer.get_chat_template((kwargs or {}).get("chat_template"), tools=tools))
    if read is None:
        return None
    for key in given:
        if key not in read:
            hint = did_you_mean(key, read).strip().rstrip("?")
            hint = f" ({hint[0].lower()}{hint[1:]}?)" if hint else ""
            return f"chat_template_kwargs[{key!r}], which it never reads{hint}"
    return None
