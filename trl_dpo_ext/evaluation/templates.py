"""What a judge behind an endpoint is asked, and how its answer is read: a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..registry import did_you_mean
from .judges import JudgeError

_FOLDER = Path(__file__).parent / "prompts"
_PLACES = ("prompt", "first", "second")
_VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}
# Set by the judge itself, or would change how many answers come and in which form.
_RESERVED = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class Template:
    """A question to a judge.

    Attributes:
        name: of the packaged file, or path.
        messages: role and content of each, with {prompt}, {first} and {second} where the texts go.
        verdict: finds the verdict in an answer, its first group being A, B or TIE; the last match counts.
        request: further fields of the request, as the endpoint's API has them.
    """

    name: str
    messages: list[dict[str, str]]
    verdict: re.Pattern[str]
    request: dict[str, Any]

    def ask(self, prompt: str, first: str, second: str) -> list[dict[str, str]]:
        """Return the messages with the texts in their places."""
        texts = {"prompt": prompt, "first": first, "second": second}

        def filled(content: str) -> str:
            # In one pass, so that a text that holds "{second}" stays as it is.
            return re.sub(r"\{(prompt|first|second)\}", lambda place: texts[place[1]], content)

        return [{**message, "content": filled(message["content"])} for message in self.messages]

    def read(self, answer: str) -> float | None:
        """Return 1 for A, 0 for B, 0.5 for a tie, or None for an answer without a verdict."""
        found = [match[1] for match in self.verdict.finditer(answer)]
        return _VERDICTS.get((found[-1] or "").upper()) if found else None


def load_template(name: str) -> Template:
    """Return a packaged template ("helpful", "summary"), or one from a YAML file.

    Raises:
        JudgeError: no such template, or a file that is none; the message says what is wrong with it.
    """
    packaged = {file.stem: file for file in _FOLDER.glob("*.yaml")}
    path = packaged.get(name, Path(name))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JudgeError(
            f"There is no template {name!r}.{did_you_mean(name, packaged)} Packaged: {', '.join(sorted(packaged))}; "
            "your own by its path."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JudgeError(f"The template {name!r} can't be read: {error}") from error
    if wrong := _what_is_wrong(content):
        raise JudgeError(f"The template {name!r}: {wrong}")
    return Template(name, content["messages"], re.compile(content["verdict"]), content.get("request") or {})


def _what_is_wrong(content: Any) -> str | None:
    if not isinstance(content, Mapping) or not {"messages", "verdict"} <= content.keys():
        return "expected the keys messages, verdict and, if you like, request."
    if unknown := sorted(map(str, content.keys() - {"messages", "verdict", "request"})):
        return f"unknown key {unknown[0]!r}; the keys are messages, verdict and request."
    messages = content["messages"]
    well_formed = isinstance(messages, list) and all(
        isinstance(m, Mapping) and m.keys() == {"role", "content"} and all(isinstance(v, str) for v in m.values())
        for m in messages
    )
    if not well_formed:
        return "messages is no list of role and content."
    text = " ".join(message["content"] for message in messages)
    if missing := [f"{{{place}}}" for place in _PLACES if f"{{{place}}}" not in text]:
        return f"no message holds {' or '.join(missing)}."
    try:
        groups = re.compile(content["verdict"]).groups
    except (re.error, TypeError) as error:
        return f"verdict is no regular expression: {error}."
    if groups < 1:
        return "verdict has no group; its first one has to find A, B or TIE."
    request = content.get("request") or {}
    if not isinstance(request, Mapping) or (reserved := [key for key in _RESERVED if key in request]):
        found = "is no mapping" if not isinstance(request, Mapping) else f"can't set {reserved[0]}"
        return f"request {found}."
    return None
