"""The registry of converters, from the columns of public datasets to an accepted form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..registry import Registry, origin

Row = dict[str, Any]


@dataclass(frozen=True)
class Converter:
    """A function that turns one row of a public dataset into a row of an accepted form.

    Attributes:
        name: the name in recipes.
        columns: the columns it reads.
        dataset: the Hub id it was written for.
        fn: from a row to a row; raises `ValueError` with a sentence about a row that it can't read.
        aliases: other names.
    """

    name: str
    columns: tuple[str, ...]
    dataset: str
    fn: Callable[[Row], Row]
    aliases: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.fn.__doc__ or "").strip().partition("\n")[0]

    @property
    def origin(self) -> str:
        """`file:line` of the function."""
        return origin(self.fn)


def _same(one: Converter, other: Converter) -> bool:
    return one.fn is other.fn


_registry: Registry[Converter] = Registry("dataset converter", "trl_dpo_ext.converters", same=_same)


def register_converter(
    name: str, *, columns: Sequence[str], dataset: str = "", aliases: Sequence[str] = ()
) -> Callable[[Callable[[Row], Row]], Callable[[Row], Row]]:
    """Register a function from a row to a row of an accepted form (see `trl_dpo_ext.data.forms`).

    A package can announce its converters under the entry-point group `trl_dpo_ext.converters`; they are imported the
    first time someone asks for their name.

    Args:
        name: the name in recipes.
        columns: the columns it reads; a dataset without them is refused before any row is read.
        dataset: the Hub id it is for.
        aliases: other names.

    Raises:
        NameCollisionError, RegistryError: the name is taken, or isn't an identifier.

    Example:
        ```python
        @register_converter("stars", columns=["question", "answers", "stars"])
        def stars(row):
            return {"prompt": row["question"], "completions": row["answers"], "scores": row["stars"]}
        ```
    """

    def add(fn: Callable[[Row], Row]) -> Callable[[Row], Row]:
        _registry.register(name, Converter(name, tuple(columns), dataset, fn, tuple(aliases)), aliases)
        return fn

    return add


def get_converter(name: str) -> Converter:
    """Return the converter with this name or alias.

    Raises:
        UnknownNameError: there is none; the message has the nearest names.
        PluginError: the package that announces it can't be loaded.
    """
    return _registry.get(name)


def list_converters() -> list[Converter]:
    """Return all converters by name, those of installed packages included."""
    return list(_registry)


def converter_names() -> list[str]:
    """Return all names and aliases, sorted; loads no package."""
    return _registry.names(aliases=True)
