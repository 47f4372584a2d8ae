"""`trl-dpo-ext rewards`: list the rewards and judges, or show one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ._console import Commands, console

if TYPE_CHECKING:
    from ..evaluation.judging.registration import Registered


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("rewards", help="list the rewards and judges, or show one")
    command.add_argument("name", nargs="?", help="show this reward or judge: what it does and where it is defined")
    command.set_defaults(run=_rewards)


def _rewards(arguments: argparse.Namespace) -> int:
    from ..evaluation import list_judges, list_rewards
    from ..evaluation.judging.rewards import MODEL_FORMS

    if arguments.name is not None:
        return _show(arguments.name)
    _list({"reward": list_rewards(), "judge": list_judges()})
    out = console()
    out.print(f"\nAlso accepted as a reward: {MODEL_FORMS}.", markup=False, soft_wrap=True)
    out.print("Every reward is also a judge: the higher reward wins.", markup=False)
    out.print("`trl-dpo-ext rewards NAME` shows one.", markup=False)
    return 0


def _list(kinds: dict[str, list[Registered[Any]]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "aliases", "kind", "summary", "defined in", box=None, pad_edge=False, header_style="bold")
    for kind, entries in kinds.items():
        for entry in entries:
            cells = (entry.name, ", ".join(entry.aliases), kind, entry.summary, entry.origin)
            table.add_row(*map(Text, cells))
    console().print(table)


def _show(name: str) -> int:
    import inspect

    from rich.text import Text

    from ..evaluation.judging.registration import JUDGES, REWARDS
    from ..registry import RegistryError, did_you_mean

    known = [*REWARDS.names(aliases=True), *JUDGES.names(aliases=True)]
    if name not in known:
        hint = did_you_mean(name, known)
        print(f"Unknown reward or judge {name!r}.{hint} `trl-dpo-ext rewards` lists all.", file=sys.stderr)
        return 2
    kind = "reward" if name in REWARDS else "judge"
    try:
        entry: Registered[Any] = REWARDS.get(name) if kind == "reward" else JUDGES.get(name)
    except RegistryError as error:
        print(error, file=sys.stderr)
        return 2
    out = console()
    aliases = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
    out.print(Text(entry.name, style="bold") + Text(f"{aliases}, a {kind}"))
    out.print(Text(inspect.getdoc(entry.fn) or "No description."))
    if entry.requires is not None:
        out.print(Text(f"\nNeeds: pip install '{entry.requires[1]}'"))
    out.print(Text(f"\nDefined in: {entry.origin}"), soft_wrap=True)
    return 0
