"""Judge prompts: the question for a model behind an endpoint, and how to read its answer. A YAML file each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from ...registry import did_you_mean
from ...strict_yaml import YamlError, read_yaml
from .contracts import EndpointError

_FOLDER = Path(__file__).parent / "prompts"
_VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}
# Fields that `Endpoint` sets itself, or that change how many answers come back and in which form.
_RESERVED = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class AnswerKind:
    """What a template asks for: a verdict or a grade.

    Attributes:
        name: the name, and the key of the file that holds the pattern.
        asker: what uses such a template.
        placeholders: names of the texts that are inserted.
        pattern_finds: what the first group of the pattern must match.
        value: turns the text of that group into a number, or None if it isn't one.
    """

    name: str
    asker: str
    placeholders: tuple[str, ...]
    pattern_finds: str
    value: Callable[[str], float | None]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


VERDICT = AnswerKind(
    "verdict",
    "a judge of pairs",
    ("prompt", "first", "second"),
    "A, B or TIE",
    lambda text: _VERDICTS.get(text.upper()),
)
GRADE = AnswerKind("grade", "a reward", ("prompt", "completion"), "a number", _number)


@dataclass(frozen=True)
class Template:
    """A question to a model.

    Attributes:
        name: name of a packaged template, or a path.
        kind: what it asks for.
        messages: role and content of each message, with placeholders such as {prompt}.
        pattern: its first group finds the verdict or grade in an answer. The last match counts.
        request: further fields of the request, as the endpoint's API defines them.
    """

    name: str
    kind: AnswerKind
    messages: list[dict[str, str]]
    pattern: re.Pattern[str]
    request: dict[str, Any]

    def ask(self, *texts: str) -> list[dict[str, str]]:
        """Return the messages with the texts inserted, in the order of the kind's placeholders."""
        named = dict(zip(self.kind.placeholders, texts, strict=True))
        placeholder = re.compile(r"\{(" + "|".join(named) + r")\}")

        def filled(content: str) -> str:
            # A single pass, so that a text that contains "{second}" stays as it is.
            return placeholder.sub(lambda match: named[match[1]], content)

        return [{**message, "content": filled(message["content"])} for message in self.messages]

    def read(self, answer: str) -> float | None:
        """Return 1 for A, 0 for B, 0.5 for a tie, or the grade; None if the answer holds none."""
        found = [match[1] for match in self.pattern.finditer(answer)]
        return self.kind.value(found[-1] or "") if found else None


def load_template(name: str, kind: AnswerKind = VERDICT) -> Template:
    """Return a packaged template, or one from a YAML file.

    Args:
        name: "helpful" or "summary" for verdicts, "score" for grades, or the path of a file.
        kind: what the template must ask for.

    Returns:
        the template.

    Raises:
        EndpointError: there is no such template, it asks for the other kind, or the file is invalid.
    """
    packaged = {file.stem: file for file in _FOLDER.glob("*.yaml")}
    path = packaged.get(name, Path(name))
    if not path.exists():
        raise EndpointError(
            f"There is no template {name!r}.{did_you_mean(name, packaged)} Packaged: {', '.join(sorted(packaged))}. "
            "For your own, give the path of its file."
        )
    try:
        content = read_yaml(path).values
    except YamlError as error:
        raise EndpointError(f"The template {name!r} can't be read: {error}") from error
    other = GRADE if kind is VERDICT else VERDICT
    if other.name in content and kind.name not in content:
        raise EndpointError(
            f"The template {name!r} asks for a {other.name}, for {other.asker}; {kind.asker} needs one that asks for a "
            f"{kind.name}."
        )
    try:
        file = _SCHEMAS[kind.name].model_validate(content, strict=True)
    except ValidationError as error:
        raise EndpointError(f"The template {name!r}: {_sentences(error, kind)}") from error
    return Template(name, kind, [m.model_dump() for m in file.messages], getattr(file, kind.name), file.request)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: str
    content: str


def _no_reserved(request: dict[str, Any] | None) -> dict[str, Any]:
    if reserved := [key for key in _RESERVED if key in (request or {})]:
        raise ValueError(f"can't set {reserved[0]}")
    return request or {}


class _TemplateFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    messages: list[_Message]
    request: Annotated[dict[str, Any] | None, AfterValidator(_no_reserved)] = Field(default_factory=dict)


def _schema(kind: AnswerKind) -> type[Any]:
    """Return the schema of a template file of this kind; the key of the pattern is the kind's name."""

    def all_placeholders(messages: list[_Message]) -> list[_Message]:
        text = " ".join(message.content for message in messages)
        if missing := [f"{{{name}}}" for name in kind.placeholders if f"{{{name}}}" not in text]:
            raise ValueError(f"no message contains {' or '.join(missing)}")
        return messages

    def pattern(text: str) -> re.Pattern[str]:
        try:
            compiled = re.compile(text)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if compiled.groups < 1:
            raise ValueError(f"the pattern has no group; its first group must find {kind.pattern_finds}")
        return compiled

    fields: dict[str, Any] = {
        "messages": (Annotated[list[_Message], AfterValidator(all_placeholders)], ...),
        kind.name: (Annotated[str, AfterValidator(pattern)], ...),
    }
    return create_model(f"{kind.name.capitalize()}Template", __base__=_TemplateFile, **fields)


_SCHEMAS = {kind.name: _schema(kind) for kind in (VERDICT, GRADE)}


def _sentences(error: ValidationError, kind: AnswerKind) -> str:
    """Return all faults of a file, each with the key that it concerns."""
    keys = ("messages", kind.name, "request")
    faults = []
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            faults.append(f"unknown key {where!r}{did_you_mean(where, keys)}")
        elif fault["type"] == "missing":
            faults.append(f"the key {where!r} is missing")
        else:
            text = str(fault.get("ctx", {}).get("error", fault["msg"]))
            faults.append(f"{where}: {text}" if where else text)
    return f"{'; '.join(faults)}. The keys are messages, {kind.name} and, optionally, request."
