"""`trl-dpo-ext losses`: list the preference losses, or show one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._console import Commands, console

if TYPE_CHECKING:
    from ..losses import LossSpec


def add(commands: Commands) -> None:
    """Add the command to the parser."""
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
        "--reads",
        choices=["scores", "ties", "token_logps", "labels", "reference_scores", "weight", "batch"],
        help="only losses that read this",
    )
    command.add_argument(
        "--markdown", action="store_true", help="print docs/losses.md, the page on the built-in losses"
    )
    command.add_argument(
        "--write-docs",
        action="store_true",
        help="regenerate docs/losses.md and the other generated text on losses; run it in the root of a checkout",
    )
    command.set_defaults(run=_losses)


def _losses(arguments: argparse.Namespace) -> int:
    from ..losses import get_loss, list_losses
    from ..losses.loss_docs import built_in, markdown_page, write_docs
    from ..registry import UnknownNameError, did_you_mean

    if arguments.name is not None:
        try:
            _show(get_loss(arguments.name))
        except UnknownNameError:
            known = [name for spec in list_losses() for name in (spec.name, *spec.aliases)]
            hint = did_you_mean(arguments.name, known)
            message = f"Unknown loss {arguments.name!r}.{hint} `trl-dpo-ext losses` lists all."
            raise UnknownNameError(message) from None
        return 0
    if arguments.write_docs:
        if not Path("docs/losses.md").exists():
            print("There is no docs/losses.md here. Run this in the root of a checkout.", file=sys.stderr)
            return 2
        changed = write_docs(Path())
        print(f"Updated: {', '.join(map(str, changed))}." if changed else "Everything is up to date.")
    elif arguments.markdown:
        print(markdown_page(built_in()), end="")
    else:
        _list([spec for spec in list_losses() if _wanted(spec, arguments)])
    return 0


def _wanted(spec: LossSpec, arguments: argparse.Namespace) -> bool:
    from ..losses.loss_docs import reads

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

    from ..losses.loss_docs import COLUMNS, row

    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    for spec in specs:
        table.add_row(*(Text(cell) for cell in row(spec)))
    out = console()
    out.print(table)
    out.print(f"\n{len(specs)} losses. `trl-dpo-ext losses NAME` shows one.", markup=False)


def _show(spec: LossSpec) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..losses.loss_docs import hyperparameters, requirements

    out = console()

    def part(heading: str, body: str) -> None:
        out.print(Text(f"\n{heading}", style="bold"))
        out.print(Text(body))

    aliases = f" (also {', '.join(spec.aliases)})" if spec.aliases else ""
    out.print(Text(spec.name, style="bold") + Text(aliases))
    out.print(Text(spec.summary))
    part("Equation", spec.sections.get("Equation", "Not given."))
    out.print(Text("\nHyperparameters", style="bold"))
    if rows := hyperparameters(spec):
        table = Table("name", "type", "default", "bounds", "meaning", box=None, pad_edge=False)
        for cells in rows:
            table.add_row(*(Text(cell) for cell in cells))
        out.print(table)
    else:
        out.print("None.")
    part("Requirements", "\n".join(requirements(spec)))
    for heading in ("Returns", "Reference", "Departures", "Relations"):
        if heading in spec.sections:
            part(heading, spec.sections[heading])
    part("Defined in", spec.origin)
