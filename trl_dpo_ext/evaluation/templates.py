"""What a model behind an endpoint is asked, and how its answer is read: a YAML file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..registry import did_you_mean
from .judges import EndpointError

_FOLDER = Path(__file__).parent / "prompts"
_VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}
# Set by whoever asks, or would change how many answers come and in which form.
_RESERVED = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class Kind:
    """What a template asks for.

    Attributes:
        name: also the key of the file that holds the pattern.
        user: who asks so.
        places: names of the texts in a question.
        finds: what the pattern's first group has to find.
        value: what the group's text is worth, or None where it is worth nothing.
    """

    name: str
    user: str
    places: tuple[str, ...]
    finds: str
    value: Callable[[str], float | None]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


VERDICT = Kind(
    "verdict",
    "a judge of pairs",
    ("prompt", "first", "second"),
    "A, B or TIE",
    lambda text: _VERDICTS.get(text.upper()),
)
GRADE = Kind("grade", "a reward", ("prompt", "completion"), "a number", _number)


@dataclass(frozen=True)
class Template:
    """A question to a model.

    Attributes:
        name: of the packaged file, or path.
        kind: what is asked for.
        messages: role and content of each, with the kind's places, such as {prompt}, where the texts go.
        pattern: finds the verdict or grade in an answer with its first group; the last match counts.
        request: further fields of the request, as the endpoint's API has them.
    """

    name: str
    kind: Kind
    messages: list[dict[str, str]]
    pattern: re.Pattern[str]
    request: dict[str, Any]

    def ask(self, *texts: str) -> list[dict[str, str]]:
        """Return the messages with the texts, in the order of the kind's places, where they belong."""
        named = dict(zip(self.kind.places, texts, strict=True))
        place = re.compile(r"\{(" + "|".join(named) + r")\}")

        def filled(content: str) -> str:
            # In one pass, so that a text that holds "{second}" stays as it is.
            return place.sub(lambda match: named[match[1]], content)

        return [{**message, "content": filled(message["content"])} for message in self.messages]

    def read(self, answer: str) -> float | None:
        """Return 1 for A, 0 for B, 0.5 for a tie, or the grade; None for an answer without one."""
        found = [match[1] for match in self.pattern.finditer(answer)]
        return self.kind.value(found[-1] or "") if found else None


def load_template(name: str, kind: Kind = VERDICT) -> Template:
    """Return a packaged template ("helpful" and "summary" for verdicts, "score" for grades), or one from a YAML file.

    Raises:
        EndpointError: no such template, one of another kind, or a file that is none; the message says what is wrong.
    """
    packaged = {file.stem: file for file in _FOLDER.glob("*.yaml")}
    path = packaged.get(name, Path(name))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EndpointError(
            f"There is no template {name!r}.{did_you_mean(name, packaged)} Packaged: {', '.join(sorted(packaged))}; "
            "your own by its path."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EndpointError(f"The template {name!r} can't be read: {error}") from error
    if wrong := _what_is_wrong(content, kind):
        raise EndpointError(f"The template {name!r}: {wrong}")
    return Template(name, kind, content["messages"], re.compile(content[kind.name]), content.get("request") or {})


def _what_is_wrong(content: Any, kind: Kind) -> str | None:
    other = GRADE if kind is VERDICT else VERDICT
    if isinstance(content, Mapping) and other.name in content and kind.name not in content:
        return f"it asks for a {other.name}, as {other.user} does; {kind.user} needs one that asks for a {kind.name}."
    if not isinstance(content, Mapping) or not {"messages", kind.name} <= content.keys():
        return f"expected the keys messages, {kind.name} and, if you like, request."
    if unknown := sorted(map(str, content.keys() - {"messages", kind.name, "request"})):
        return f"unknown key {unknown[0]!r}; the keys are messages, {kind.name} and request."
    messages = content["messages"]
    well_formed = isinstance(messages, list) and all(
        isinstance(m, Mapping) and m.keys() == {"role", "content"} and all(isinstance(v, str) for v in m.values())
        for m in messages
    )
    if not well_formed:
        return "messages is no list of role and content."
    text = " ".join(message["content"] for message in messages)
    if missing := [f"{{{place}}}" for place in kind.places if f"{{{place}}}" not in text]:
        return f"no message holds {' or '.join(missing)}."
    try:
        groups = re.compile(content[kind.name]).groups
    except (re.error, TypeError) as error:
        return f"{kind.name} is no regular expression: {error}."
    if groups < 1:
        return f"{kind.name} has no group; its first one has to find {kind.finds}."
    request = content.get("request") or {}
    if not isinstance(request, Mapping) or (reserved := [key for key in _RESERVED if key in request]):
        found = "is no mapping" if not isinstance(request, Mapping) else f"can't set {reserved[0]}"
        return f"request {found}."
    return None
