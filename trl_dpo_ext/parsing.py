"""Strict parsing of recipes: every key of a YAML file and every option must exist and have a value of its type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

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
        self._options: set[str] = {"--config"}
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self._by_name.pop("help", None)  # an option, not a setting
        self._plain_defaults = {name: action.default for name, action in self._by_name.items()}
        self.given: dict[str, Any] = {}

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an option as argparse does, and remember its name."""
        action = super().add_argument(*args, **kwargs)
        self._by_name.setdefault(action.dest, action)  # `--fast` comes before `--no_fast`, which sets `fast` too
        self._options.update(action.option_strings)
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
        _raise_all(
            "on the command line",
            [f"Unknown option {_name(o)}.{self._advice(_name(o).lstrip('-'))}" for o in unknown],
        )
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
        _raise_all("in the config file", faults)
        return super().set_defaults_with_config(**config)

    def _checked(self, key: str, value: Any) -> Any:
        if key not in self._by_name:
            raise ParseError(f"Unknown key {key!r} in the config file.{self._advice(str(key))}")
        return _checked(self._by_name[key], value)

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


def _raise_all(where: str, faults: list[str]) -> None:
    if len(faults) == 1:
        raise ParseError(faults[0])
    if faults:
        raise ParseError("\n  ".join([f"{len(faults)} mistakes {where}:", *faults]))


def _checked(action: argparse.Action, value: Any) -> Any:
    """Return a YAML value as the command line would have given it."""
    if value is None or isinstance(value, dict):
        return value
    if action.nargs in ("+", "*"):
        return [_scalar(action, item) for item in (value if isinstance(value, list) else [value])]
    return _scalar(action, value)


def _scalar(action: argparse.Action, value: Any) -> Any:
    convert: Any = action.type or str
    try:
        converted = convert(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError, KeyError):
        expected = getattr(convert, "__name__", "value").replace("string_to_bool", "true or false")
        raise ParseError(f"{action.dest}: {value!r} is not valid; expected {expected}.") from None
    if action.choices is not None and converted not in action.choices:
        raise ParseError(
            f"{action.dest}: {value!r} is unknown.{did_you_mean(str(value), map(str, action.choices))} "
            f"It is one of: {', '.join(map(str, action.choices))}."
        )
    return converted
