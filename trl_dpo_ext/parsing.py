"""Strict parsing of recipes: every key of a YAML file and every option must exist and have a value of its type."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from .registry import did_you_mean
from .renamed_settings import hint
from .setting_ranges import out_of_range
from .strict_yaml import YamlError, YamlMapping, read_yaml


class ParseError(ValueError):
    """A key, option or value that a recipe can't have. The message names it and, where there is one, the nearest."""


class StrictParser(TrlParser):
    """TRL's parser (`--config file.yaml --option value ...`), but strict.

    TRL's parser takes any value from a YAML file, whatever its type, and argparse takes abbreviated options. This one
    reads YAML as `trl_dpo_ext.strict_yaml` does, checks values as if they came from the command line, and takes full
    names only. It reports all faults of a file at once, each with its line, and numbers out of their range.

    Attributes:
        given: after parsing, every setting that differs from its default: a recipe that gives the same run again.
        named: after parsing, the names of the settings in the file and on the command line, whatever their value.

    Raises:
        ParseError: an unknown key or option, or a value of the wrong type. The parser never exits.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Settings:
        ...     beta: float = 0.1
        >>> StrictParser([Settings]).parse_args_and_config(["--btea", "2"])
        Traceback (most recent call last):
        trl_dpo_ext.parsing.ParseError: Unknown option --btea. Did you mean 'beta'?
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        self._by_name: dict[str, argparse.Action] = {}
        self._options = {"--config": "config"}  # option -> name of the setting
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self._by_name.pop("help", None)  # an option, not a setting
        self._types = {name: t for kind in self.dataclass_types for name, t in get_type_hints(kind).items()}
        self._plain_defaults = {name: action.default for name, action in self._by_name.items()}
        self.given: dict[str, Any] = {}
        self.named: set[str] = set()

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an option as argparse does, and remember its name."""
        action = super().add_argument(*args, **kwargs)
        self._by_name.setdefault(action.dest, action)  # `--fast` comes before `--no_fast`, which sets `fast` too
        self._options.update(dict.fromkeys(action.option_strings, action.dest))
        return action

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as argparse does, check ranges, and note what differs from the defaults."""
        namespace, rest = super().parse_known_args(*args, **kwargs)
        raise_all("in the settings", [fault for _, fault in out_of_range(vars(namespace))])
        defaults = self._plain_defaults
        self.given = {k: v for k, v in vars(namespace).items() if k not in defaults or v != defaults[k]}
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise the message; argparse would print two pages of usage and exit."""
        raise ParseError(message)

    def parse_args_and_config(  # type: ignore[override]  # nothing here takes what is left over
        self, args: Iterable[str] | None = None, **kwargs: Any
    ) -> Any:
        """Parse `--config FILE` and options, which win over the file.

        A mapping `env` in the file sets environment variables, as in TRL.

        Args:
            args: the command line; None takes the process's.
            kwargs: further arguments of `transformers.HfArgumentParser.parse_args_into_dataclasses`.

        Raises:
            ParseError: all faults at once.
        """
        given = _split_config(sys.argv[1:] if args is None else args)
        unknown = [option for option in given if option.startswith("--") and _name(option) not in self._options]
        raise_all(
            "on the command line",
            [f"Unknown option {_name(o)}.{self._advice(_name(o).lstrip('-'))}" for o in unknown],
        )
        self.named = {self._options[_name(option)] for option in given if option.startswith("--")} - {"config"}
        if "--config" in given:
            at = given.index("--config")
            path = given[at + 1]
            del given[at : at + 2]
            if "--config" in given:
                raise ParseError("--config is given twice; a run has one recipe.")
            try:
                file = read_yaml(path)
            except YamlError as error:
                raise ParseError(f"--config: {error}") from None
            self.take(file, source=path)
            os.environ.update({name: str(value) for name, value in file.values.get("env", {}).items()})
        return self.parse_args_into_dataclasses(args=given, look_for_args_file=False, **kwargs)

    def take(self, file: YamlMapping, *, source: str) -> None:
        """Take the settings of a YAML file in place of the defaults.

        Args:
            file: the settings by name.
            source: what messages call the file.

        Raises:
            ParseError: all faults at once: unknown keys, values of another type or out of range.
        """
        faults: list[tuple[int, str]] = []
        settings: dict[str, Any] = {}
        for key, value in file.values.items():
            if key == "env" and key not in self._by_name:
                faults += [(file.lines.get(key, 0), fault) for fault in _env_faults(value)]
                continue
            try:
                settings[key] = self._checked(key, value, file.texts.get(key))
            except ParseError as error:
                faults.append((file.lines.get(key, 0), str(error)))
        faults += [(file.lines.get(name, 0), fault) for name, fault in out_of_range(settings)]
        if faults:
            sentences = [f"line {line}: {fault}" if line else fault for line, fault in sorted(faults)]
            raise_all(f"in {source}", sentences if len(faults) > 1 else [f"{source}, {sentences[0]}"])
        self.named.update(settings)
        self.set_defaults_with_config(**settings)

    def _checked(self, key: str, value: Any, text: str | None) -> Any:
        if key not in self._by_name:
            raise ParseError(f"Unknown key {key!r}.{self._advice(key)}")
        return _checked(self._by_name[key], self._types[key], value, text)

    def _advice(self, name: str) -> str:
        return hint(name) or did_you_mean(name, self._by_name)


def _split_config(arguments: Iterable[str]) -> list[str]:
    """Return the arguments with `--config=FILE` as two, as TRL's parser expects it."""
    split: list[str] = []
    for argument in arguments:
        split += argument.split("=", 1) if argument.startswith("--config=") else [argument]
    if split[-1:] == ["--config"]:
        raise ParseError("--config needs a YAML file.")
    return split


def _name(option: str) -> str:
    return option.partition("=")[0]


def raise_all(where: str, faults: Sequence[str]) -> None:
    """Raise all faults in one message, if there are any.

    Args:
        where: what has them, for example "in the config file".
        faults: one sentence or more each.

    Raises:
        ParseError
    """
    if len(faults) == 1:
        raise ParseError(faults[0])
    if faults:
        raise ParseError("\n  ".join([f"{len(faults)} mistakes {where}:", *faults]))


def _env_faults(variables: Any) -> list[str]:
    if not isinstance(variables, Mapping):
        return ["env must map names of environment variables to values."]
    return [
        f"env: {name!r} can't be set to {value!r}; expected a name and a text or number."
        for name, value in variables.items()
        if not name or "=" in name or "\0" in f"{name}{value}" or not isinstance(value, str | int | float)
    ]


def _checked(action: argparse.Action, annotation: Any, value: Any, text: str | None) -> Any:
    """Return a YAML value as the command line would have given it.

    Args:
        action: the option of the setting.
        annotation: the type of the setting's field.
        value: from the file.
        text: how the file writes it; a field for text takes that, so that `run_name: 010` stays "010".
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = [get_origin(kind) or kind for kind in kinds]
    if value is None and (NoneType in plain or action.default is None):
        return value
    if isinstance(value, dict) and (dict in plain or Any in plain):
        return value
    if isinstance(value, list) and list in plain:
        of_items = [item for kind in kinds if get_origin(kind) is list for item in get_args(kind)]
        return [_scalar(action, of_items, item, None) for item in value]
    converted = _scalar(action, plain, value, text if str in plain else None)
    return [converted] if action.nargs in ("+", "*") else converted


def _check_mapping(text: str) -> None:
    """Refuse text in place of a mapping that is neither a JSON object nor a file with one."""
    if text.lstrip().startswith("{"):
        if not isinstance(json.loads(text), dict):
            raise ValueError
    elif not Path(text).is_file():
        raise ValueError


def _scalar(action: argparse.Action, kinds: Sequence[Any], value: Any, text: str | None) -> Any:
    convert: Any = action.type or str
    try:
        if value is None or isinstance(value, dict | list):
            raise ValueError
        converted = convert(str(value) if text is None else text)
        if dict in kinds and isinstance(converted, str):
            _check_mapping(converted)
    except (ValueError, TypeError, argparse.ArgumentTypeError, KeyError, OSError, OverflowError, RecursionError):
        names = {NoneType: "null", bool: "true or false", dict: "a mapping", list: "a list", str: "text"}
        expected = ", ".join(names.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)
        shown = repr(value) if len(repr(value)) < 200 else f"{repr(value)[:200]}..."
        raise ParseError(f"{action.dest}: {shown} is not valid; expected {expected}.") from None
    if action.choices is not None and converted not in action.choices:
        raise ParseError(
            f"{action.dest}: {value!r} is unknown.{did_you_mean(str(value), map(str, action.choices))} "
            f"It is one of: {', '.join(map(str, action.choices))}."
        )
    return converted
