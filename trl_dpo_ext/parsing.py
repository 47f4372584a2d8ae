"""Strict parsing of recipes: every key of a YAML file and every option must exist and have a value of its type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

from .registry import did_you_mean
from .renamed_settings import hint


class ParseError(ValueError):
    """A key, option or value that a recipe can't have. The message names it and, where there is one, the nearest."""


class StrictParser(TrlParser):
    """TRL's parser (`--config file.yaml --option value ...`), but strict.

    TRL's parser takes any value from a YAML file, whatever its type, and argparse takes abbreviated options. This one
    checks YAML values as if they came from the command line, and takes full names only. It reports all faults of a
    file at once.

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
        """Parse as argparse does, and note what differs from the defaults."""
        namespace, rest = super().parse_known_args(*args, **kwargs)
        defaults = self._plain_defaults
        self.given = {k: v for k, v in vars(namespace).items() if k not in defaults or v != defaults[k]}
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise the message; argparse would print two pages of usage and exit."""
        raise ParseError(message)

    def parse_args_and_config(self, args: Iterable[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse as TRL's parser does; see `TrlParser.parse_args_and_config`."""
        given = _split_config(sys.argv[1:] if args is None else args)
        unknown = [option for option in given if option.startswith("--") and _name(option) not in self._options]
        raise_all(
            "on the command line",
            [f"Unknown option {_name(o)}.{self._advice(_name(o).lstrip('-'))}" for o in unknown],
        )
        self.named = {self._options[_name(option)] for option in given if option.startswith("--")} - {"config"}
        path = given[given.index("--config") + 1] if "--config" in given else None
        try:
            return super().parse_args_and_config(given, *rest, **kwargs)
        except FileNotFoundError as error:
            raise ParseError(f"The config file {error.filename!r} does not exist.") from None
        except IsADirectoryError as error:
            raise ParseError(f"The config file {error.filename!r} is a folder; name a YAML file.") from None
        except yaml.YAMLError as error:
            raise ParseError(f"The config file {path!r} is not YAML: {error}") from None
        except UnicodeDecodeError as error:
            raise ParseError(f"The config file {path!r} is not UTF-8 text: {error}.") from None

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Take the values of a YAML file, each checked against the option of its name."""
        faults = []
        for key, value in config.items():
            try:
                config[key] = self._checked(key, value)
            except ParseError as error:
                faults.append(str(error))
        raise_all("in the config file", faults)
        self.named.update(config)
        return super().set_defaults_with_config(**config)

    def _checked(self, key: str, value: Any) -> Any:
        if key not in self._by_name:
            raise ParseError(f"Unknown key {key!r} in the config file.{self._advice(str(key))}")
        return _checked(self._by_name[key], self._types[key], value)

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


def _checked(action: argparse.Action, annotation: Any, value: Any) -> Any:
    """Return a YAML value as the command line would have given it.

    Args:
        action: the option of the setting.
        annotation: the type of the setting's field.
        value: from the file.
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = [get_origin(kind) or kind for kind in kinds]
    if value is None and (NoneType in plain or action.default is None):
        return value
    if isinstance(value, dict) and (dict in plain or Any in plain):
        return value
    if isinstance(value, list) and list in plain:
        of_items = [item for kind in kinds if get_origin(kind) is list for item in get_args(kind)]
        return [_scalar(action, of_items, item) for item in value]
    converted = _scalar(action, plain, value)
    return [converted] if action.nargs in ("+", "*") else converted


def _scalar(action: argparse.Action, kinds: Sequence[Any], value: Any) -> Any:
    convert: Any = action.type or str
    try:
        if value is None or isinstance(value, dict | list):
            raise ValueError
        converted = convert(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError, KeyError):
        names = {NoneType: "null", bool: "true or false", dict: "a mapping", list: "a list", str: "text"}
        expected = ", ".join(names.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)
        raise ParseError(f"{action.dest}: {value!r} is not valid; expected {expected}.") from None
    if action.choices is not None and converted not in action.choices:
        raise ParseError(
            f"{action.dest}: {value!r} is unknown.{did_you_mean(str(value), map(str, action.choices))} "
            f"It is one of: {', '.join(map(str, action.choices))}."
        )
    return converted
