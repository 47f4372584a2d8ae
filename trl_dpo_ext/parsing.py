"""Strict parsing of recipes: every key of a YAML file and every option must be known and of its type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from .registry import did_you_mean


class ParseError(ValueError):
    """A key, option or value that a recipe can't have. The message names it and the nearest known one."""


class StrictParser(TrlParser):
    """TRL's parser (`--config file.yaml --option value ...`) without its leniency.

    TRL's parser takes a YAML value as it is, whatever its type, and argparse takes abbreviated options. Here a value
    has to be one that the command line would take, and names have to be whole.

    Attributes:
        given: after parsing, every setting that differs from its default: a recipe that gives the same run again.

    Raises:
        ParseError: an unknown key or option, or a value of the wrong type, instead of argparse's exit.

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
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        # The first option of a name counts: after `--fast` comes `--no_fast`.
        self._by_name = {action.dest: action for action in reversed(self._actions)}
        self._plain_defaults = {name: action.default for name, action in self._by_name.items()}
        self.given: dict[str, Any] = {}

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as argparse does, and note what differs from the defaults."""
        namespace, rest = super().parse_known_args(*args, **kwargs)
        defaults = self._plain_defaults
        self.given = {k: v for k, v in vars(namespace).items() if k not in defaults or v != defaults[k]}
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print after two pages of usage."""
        raise ParseError(message)

    def parse_args_and_config(self, args: Iterable[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse as TRL's parser does; see `TrlParser.parse_args_and_config`."""
        options = [argument.partition("=")[0] for argument in args] if args is not None else None
        for option in options if options is not None else _command_line():
            if option.startswith("--") and option != "--config" and option not in self._option_string_actions:
                known = [name.lstrip("-") for name in self._option_string_actions]
                raise ParseError(f"Unknown option {option}.{did_you_mean(option.lstrip('-'), known)}")
        try:
            return super().parse_args_and_config(args, *rest, **kwargs)
        except FileNotFoundError as error:
            raise ParseError(f"The config file {error.filename!r} does not exist.") from None
        except IsADirectoryError as error:
            raise ParseError(f"The config file {error.filename!r} is a folder; name a YAML file.") from None
        except yaml.YAMLError as error:
            raise ParseError(f"The config file is not YAML: {error}") from None
        except UnicodeDecodeError as error:
            given = list(args) if args is not None else sys.argv[1:]
            name = given[given.index("--config") + 1]
            raise ParseError(f"The config file {name!r} is not UTF-8 text: {error}.") from None

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Take the values of a YAML file, each checked against the option of its name."""
        for key, value in config.items():
            if key not in self._by_name:
                raise ParseError(f"Unknown key {key!r} in the config file.{did_you_mean(str(key), self._by_name)}")
            config[key] = _checked(self._by_name[key], value)
        return super().set_defaults_with_config(**config)


def _command_line() -> list[str]:
    return [argument.partition("=")[0] for argument in sys.argv[1:]]


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
