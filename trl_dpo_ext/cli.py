"""The command line: `trl-dpo-ext COMMAND`. Whatever is heavy is imported inside a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from .losses import LossSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, or 2 for a mistake on the command line."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("trl-dpo-ext", description="Preference losses, trainers and evaluation on TRL.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_losses(commands)
    return parser


def _console() -> Console:
    from rich.console import Console

    # A pipe or a file has no width of its own; there a row shouldn't break.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


# --- losses --------------------------------------------------------------------------------------------------------


def _add_losses(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("losses", help="list the preference losses, or show one")
    command.add_argument("name", nargs="?", help="show this loss: equation, hyperparameters, requirements, relations")
    reference = command.add_mutually_exclusive_group()
    reference.add_argument("--reference-free", action="store_true", help="only losses that need no reference model")
    reference.add_argument("--with-reference", action="store_true", help="only losses that read a reference")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--listwise", action="store_true", help="only losses over whole rankings")
    form.add_argument("--pairwise", action="store_true", help="only losses over pairs")
    command.add_argument("--length-normalized", action="store_true", help="only losses built on per-token means")
    command.add_argument(
        "--reads", choices=["scores", "ties", "token_logps", "batch"], help="only losses that read this"
    )
    command.add_argument("--markdown", action="store_true", help="print the docs page on the built-in losses")
    command.set_defaults(run=_losses)


def _losses(arguments: argparse.Namespace) -> int:
    from .losses import get_loss, list_losses
    from .losses.catalog import built_in, markdown_page
    from .registry import RegistryError, UnknownNameError, did_you_mean

    if arguments.name is not None:
        try:
            _show(get_loss(arguments.name))
        except UnknownNameError:
            known = [name for spec in list_losses() for name in (spec.name, *spec.aliases)]
            hint = did_you_mean(arguments.name, known)
            print(f"Unknown loss {arguments.name!r}.{hint} `trl-dpo-ext losses` lists all.", file=sys.stderr)
            return 2
        except RegistryError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    if arguments.markdown:
        print(markdown_page(built_in()), end="")
    else:
        _list([spec for spec in list_losses() if _wanted(spec, arguments)])
    return 0


def _wanted(spec: LossSpec, arguments: argparse.Namespace) -> bool:
    from .losses.catalog import reads

    return not (
        (arguments.reference_free and not spec.reference_free)
        or (arguments.with_reference and spec.reference_free)
        or (arguments.listwise and not spec.listwise)
        or (arguments.pairwise and spec.listwise)
        or (arguments.length_normalized and not spec.length_normalized)
        or (arguments.reads is not None and arguments.reads not in reads(spec))
    )


def _list(specs: list[LossSpec]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .losses.catalog import COLUMNS, row

    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    for spec in specs:
        table.add_row(*(Text(cell) for cell in row(spec)))
    console = _console()
    console.print(table)
    console.print(f"\n{len(specs)} losses. `trl-dpo-ext losses NAME` shows one.", markup=False)


def _show(spec: LossSpec) -> None:
    from rich.table import Table
    from rich.text import Text

    from .losses.catalog import hyperparameters, requirements

    console = _console()

    def part(heading: str, body: str) -> None:
        console.print(Text(f"\n{heading}", style="bold"))
        console.print(Text(body))

    aliases = f" (also {', '.join(spec.aliases)})" if spec.aliases else ""
    console.print(Text(spec.name, style="bold") + Text(aliases))
    console.print(Text(spec.summary))
    part("Equation", spec.sections.get("Equation", "Not given."))
    console.print(Text("\nHyperparameters", style="bold"))
    if rows := hyperparameters(spec):
        table = Table("name", "type", "default", "bounds", "meaning", box=None, pad_edge=False)
        for cells in rows:
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
    else:
        console.print("None.")
    part("Requirements", "\n".join(requirements(spec)))
    for heading in ("Returns", "Reference", "Departures", "Relations"):
        if heading in spec.sections:
            part(heading, spec.sections[heading])
    part("Defined in", spec.origin)
