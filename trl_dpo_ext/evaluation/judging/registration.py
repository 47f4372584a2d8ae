"""The registries of rewards and judges: decorators, entry points, and what each entry says about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from ...registry import Registry, RegistryError, origin
from .contracts import Judge, Reward

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Registered(Generic[F]):
    """A registered reward or judge.

    Attributes:
        name: the name that selects it.
        fn: the reward or judge itself.
        aliases: other names for it.
        requires: optional package that it imports, as (module, what to install), or None.
    """

    name: str
    fn: F
    aliases: tuple[str, ...] = ()
    requires: tuple[str, str] | None = None

    @property
    def summary(self) -> str:
        """First line of the docstring, or an empty string."""
        return (self.fn.__doc__ or "").strip().partition("\n")[0]

    @property
    def origin(self) -> str:
        """`file:line` of the definition."""
        return origin(self.fn)

    def check_installed(self) -> None:
        """Check that the optional package can be imported.

        Raises:
            ImportError: it can't; the message says what to install.
        """
        if self.requires is None:
            return
        module, install = self.requires
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(f"{self.name!r} needs {module}: pip install '{install}'.") from error


REWARDS: Registry[Registered[Reward]] = Registry("reward", "trl_dpo_ext.rewards", same=lambda a, b: a.fn is b.fn)
JUDGES: Registry[Registered[Judge]] = Registry("judge", "trl_dpo_ext.judges", same=lambda a, b: a.fn is b.fn)


def register_reward(
    name: str, *, aliases: Sequence[str] = (), requires: tuple[str, str] | None = None
) -> Callable[[F], F]:
    """Register a function `(prompts, completions) -> rewards` under a name that recipes and commands accept.

    Other packages can announce rewards through the entry-point group `trl_dpo_ext.rewards`.

    Args:
        name: an identifier. Names of judges and rewards share one namespace on the command line.
        aliases: other names for it.
        requires: optional package that it imports, as (module, what to install). It is checked when the reward is
            looked up, before anything expensive starts.

    Raises:
        NameCollisionError: another reward has the name.
        RegistryError: the name is not an identifier, or a judge has it.

    Example:
        ```python
        @register_reward("brevity")
        def brevity(prompts, completions):
            "Minus the number of words."
            return [-len(completion.split()) for completion in completions]
        ```
    """
    return _registering(REWARDS, JUDGES, name, aliases, requires)


def register_judge(
    name: str, *, aliases: Sequence[str] = (), requires: tuple[str, str] | None = None
) -> Callable[[F], F]:
    """Register a function `(prompts, firsts, seconds) -> verdicts` under a name that `get_judge` accepts.

    Other packages can announce judges through the entry-point group `trl_dpo_ext.judges`.

    Args:
        name: an identifier. Names of judges and rewards share one namespace on the command line.
        aliases: other names for it.
        requires: as in `register_reward`.

    Raises:
        NameCollisionError: another judge has the name.
        RegistryError: the name is not an identifier, or a reward has it.
    """
    return _registering(JUDGES, REWARDS, name, aliases, requires)


def _registering(
    registry: Registry[Any],
    other: Registry[Any],
    name: str,
    aliases: Sequence[str],
    requires: tuple[str, str] | None,
) -> Callable[[F], F]:
    def add(fn: F) -> F:
        for candidate in (name, *aliases):
            # `--judge NAME` takes both kinds, so a name must mean one thing.
            if candidate in other:
                raise RegistryError(
                    f"The {registry.kind} name {candidate!r} ({origin(fn)}) is already the name of a {other.kind}. "
                    "Choose another name."
                )
        registry.register(name, Registered(name, fn, tuple(aliases), requires), aliases)
        return fn

    return add
