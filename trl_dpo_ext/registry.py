"""A typed table from names to objects, with aliases, name collisions that raise, suggestions, and lazy plugins.

It needs the standard library only, so that names can be listed and checked without importing torch.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class RegistryError(ValueError):
    """Base of everything a :class:`Registry` raises."""


class UnknownNameError(RegistryError):
    """A name that is not registered. The message lists the nearest known names."""


class NameCollisionError(RegistryError):
    """A name that another object has. The message says where both are defined."""


class PluginError(RegistryError):
    """A plugin that was asked for by name and can't be loaded."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x' or 'y'?"`` for the nearest names, or an empty string.

    >>> did_you_mean("btea", ["beta", "gamma"])
    " Did you mean 'beta'?"
    >>> did_you_mean("zzz", ["beta", "gamma"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def origin(obj: Any) -> str:
    """Return ``file:line`` of the definition of ``obj``, or its qualified name if it has no source.

    >>> origin(did_you_mean).rpartition(":")[0].endswith("registry.py")
    True
    """
    target = inspect.unwrap(getattr(obj, "fn", obj))
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (TypeError, OSError):
        return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', repr(target))}"


def import_all(package: str) -> list[ModuleType]:
    """Import every module of a package's folder, in alphabetical order, so that each registers what it defines.

    A new built-in then needs no entry in a list. Names that begin with an underscore are skipped, and so are the
    modules of subfolders (their `__init__.py` is imported).

    Args:
        package: the package's full name; a package's `__init__.py` passes its own `__name__`.

    Returns:
        the modules.

    >>> [module.__name__ for module in import_all("json")]
    ['json.decoder', 'json.encoder', 'json.scanner', 'json.tool']
    """
    folder = sys.modules[package] if package in sys.modules else import_module(package)
    names = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
    return [import_module(f"{package}.{name}") for name in names if not name.startswith("_")]


class Registry(Generic[T]):
    """A table from names to objects.

    Args:
        kind: what the entries are, for messages ("loss").
        entry_point_group: the entry-point group in which other distributions announce entries. An entry point is
            loaded the first time its name is asked for; loading it must register that name.
        same: tells whether a second registration repeats the first (a no-op) or collides with it.
    """

    def __init__(
        self, kind: str, entry_point_group: str | None = None, same: Callable[[T, T], bool] = lambda a, b: a is b
    ) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._same = same
        self._entries: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._broken: set[str] = set()

    def register(self, name: str, obj: T, aliases: Iterable[str] = ()) -> T:
        """Register ``obj`` under ``name`` and ``aliases``: all of them, or none if one raises.

        Raises:
            NameCollisionError: another object has one of the names. Registering the same object again is a no-op.
            RegistryError: a name is not an identifier, as YAML files and the command line need it.
        """
        names = [name, *aliases]
        for candidate in names:
            if not isinstance(candidate, str) or not candidate.isidentifier():
                raise RegistryError(
                    f"{candidate!r} can't name a {self.kind} ({origin(obj)}): use letters, digits and underscores, "
                    "not starting with a digit."
                )
            holder = self._entries.get(self._aliases.get(candidate, candidate))
            if holder is not None and not self._same(holder, obj):
                raise NameCollisionError(
                    f"The {self.kind} name {candidate!r} is taken: {origin(holder)} has it, {origin(obj)} asks for "
                    "it. Choose another name for one of them."
                )
        self._entries[name] = obj
        self._aliases.update(dict.fromkeys(names[1:], name))
        return obj

    def get(self, name: str) -> T:
        """Return the entry called ``name``, which may be an alias; load its plugin if it has one.

        Raises:
            UnknownNameError: the name is not registered.
            PluginError: the plugin that announces the name can't be loaded, or doesn't register it.
            NameCollisionError: a plugin announces a name that another entry has.
        """
        plugin = self._plugins.get(name)
        if plugin is not None:
            self._load(plugin)
        canonical = self._aliases.get(name, name)
        if canonical in self._entries:
            return self._entries[canonical]
        known = self.names(aliases=True)
        raise UnknownNameError(
            f"Unknown {self.kind} {name!r}.{did_you_mean(str(name), known)} Known names: {', '.join(known)}."
        )

    def names(self, aliases: bool = False) -> list[str]:
        """Return the sorted names, including those that plugins announce, without loading anything."""
        found = set(self._entries) | {n for n in self._plugins if n not in self._aliases}
        return sorted(found | set(self._aliases) if aliases else found)

    def __iter__(self) -> Iterator[T]:
        """Yield all entries in the order of their names. A broken plugin is skipped with one warning."""
        for plugin in self._plugins.values():
            if plugin.name not in self._broken:
                try:
                    self._load(plugin)
                except RegistryError as error:
                    self._broken.add(plugin.name)
                    warnings.warn(str(error), stacklevel=2)
        for name in sorted(self._entries):
            yield self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names(aliases=True)

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Forget, when the block ends, what was registered in it. For tests."""
        before = dict(self._entries), dict(self._aliases)
        try:
            yield
        finally:
            self._entries, self._aliases = before

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        # Cached, because it reads every installed distribution.
        if self.entry_point_group is None:
            return {}
        return {point.name: point for point in entry_points(group=self.entry_point_group)}

    def _load(self, plugin: EntryPoint) -> None:
        where = f"{plugin.value!r}" + (f" of {plugin.dist.name} {plugin.dist.version}" if plugin.dist else "")
        try:
            plugin.load()
        except NameCollisionError:
            raise
        except Exception as error:
            raise PluginError(
                f"The {self.kind} {plugin.name!r} is announced by {where}, which can't be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        if self._aliases.get(plugin.name, plugin.name) not in self._entries:
            raise PluginError(
                f"The {self.kind} {plugin.name!r} is announced by {where}, but loading it registered no such name."
            )
