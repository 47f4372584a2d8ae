"""YAML without surprises: YAML 1.2's core schema, each key once and a text, no aliases, lines in every error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A text that is no YAML mapping, or isn't one without surprises. The message names the source and the line."""


@dataclass(frozen=True)
class YamlMapping:
    """A mapping read from YAML.

    Attributes:
        values: its content.
        lines: line of each key, from 1.
        texts: what is written for each value that is a plain or quoted scalar, such as `1e5` for 100000.0.
    """

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read_yaml(path: str | Path) -> YamlMapping:
    """Read a YAML file with a mapping.

    Raises:
        YamlError: it can't be opened, isn't UTF-8, or as `parse_yaml`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise YamlError(f"The file {str(path)!r} does not exist.") from None
    except IsADirectoryError:
        raise YamlError(f"{str(path)!r} is a folder; name a YAML file.") from None
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is not UTF-8 text: {error}.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise YamlError(f"{str(path)[:200]!r} can't be opened: {getattr(error, 'strerror', None) or error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> YamlMapping:
    """Parse YAML with a mapping.

    Args:
        text: the YAML.
        source: what errors call it, for example the file's name.

    Raises:
        YamlError: no YAML or no mapping; a key that occurs twice or isn't text; an alias or tag; nested too deeply.
    """
    _check_characters(text, source)
    loader = _Loader(text, source)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            kind = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise YamlError(f"{source} holds {kind}, expected a mapping: write one `key: value` a line.")
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise YamlError(f"{source}{where}: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise YamlError(f"{source} is nested too deeply.") from None
    finally:
        loader.dispose()
    pairs = [(key.value, key, value) for key, value in node.value]
    return YamlMapping(
        values,
        {name: key.start_mark.line + 1 for name, key, _ in pairs},
        {name: value.value for name, _, value in pairs if isinstance(value, yaml.ScalarNode)},
    )


def parse_yaml_value(text: str, source: str) -> Any:
    """Parse a single YAML value, such as `[1, 2]` or `true`.

    Raises:
        YamlError: as `parse_yaml`.
    """
    lines = "".join(f"  {line}\n" for line in text.splitlines()) or "  \n"
    return parse_yaml(f"value:\n{lines}", source).values["value"]


def dump_yaml(content: Any) -> str:
    """Return YAML that `parse_yaml` reads as `content`, and YAML 1.1 readers too."""
    return yaml.dump(content, Dumper=_Dumper, allow_unicode=True)


def _check_characters(text: str, source: str) -> None:
    if found := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise YamlError(f"{source}, line {line}: the character {found[0]!r} can't be in YAML.")


_MOST_DIGITS = 300


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the types of YAML 1.2's core schema instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, as in PyYAML

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.name = source

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _fault(f"the alias *{event.anchor} isn't supported; write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _fault(f"the tag {event.tag} isn't supported; remove it", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                found = key.value if isinstance(key, yaml.ScalarNode) else f"(a {key.id})"
                raise _fault(f"the key {found} is not text; put it in quotes", key)
            if key.value in first:
                raise _fault(f"the key {key.value!r} occurs twice, first in line {first[key.value]}; remove one", key)
            first[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def integer(self, node: Any) -> int:
        if len(node.value) > _MOST_DIGITS:
            raise _fault(f"a number of {len(node.value)} digits", node)
        return int(node.value, 0) if node.value[:2] in ("0o", "0x") else int(node.value)

    def number(self, node: Any) -> float:
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _fault(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


# YAML 1.2.2, section 10.3.2
_CORE = {
    "null": (r"null|Null|NULL|~", "nN~"),
    "null ": (r"", ""),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name.strip()}", re.compile(rf"^(?:{_pattern})$"), [*_first] or [""]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes what either YAML version would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _CORE.items():
    _Dumper.add_implicit_resolver(f"core {_name}", re.compile(rf"^(?:{_pattern})$"), [*_first] or [""])
