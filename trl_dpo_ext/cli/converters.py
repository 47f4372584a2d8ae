"""`trl-dpo-ext converters`: list the converters of public datasets, or show one."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING

from ._console import Commands, console

if TYPE_CHECKING:
    from ..data.converter_registry import Converter


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("converters", help="list the converters of public datasets, or show one")
    command.add_argument("name", nargs="?", help="show this converter: what it reads, and what it was written for")
    command.set_defaults(run=_converters)


def _converters(arguments: argparse.Namespace) -> int:
    from ..data import get_converter, list_converters
    from ..data.converter_registry import converter_names
    from ..registry import UnknownNameError, did_you_mean

    if arguments.name is None:
        _list(list_converters())
        return 0
    try:
        _show(get_converter(arguments.name))
    except UnknownNameError:
        hint = did_you_mean(arguments.name, converter_names())
        message = f"Unknown converter {arguments.name!r}.{hint} `trl-dpo-ext converters` lists all."
        raise UnknownNameError(message) from None
    return 0


def _list(converters: list[Converter]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "what it reads", "defined in", box=None, pad_edge=False, header_style="bold")
    for converter in converters:
        table.add_row(*(Text(cell) for cell in (converter.name, converter.summary, converter.origin)))
    out = console()
    out.print(table)
    out.print(f"\n{len(converters)} converters. `trl-dpo-ext converters NAME` shows one.", markup=False)


def _show(converter: Converter) -> None:
    from rich.text import Text

    out = console()
    aliases = f" (also {', '.join(converter.aliases)})" if converter.aliases else ""
    out.print(Text(converter.name, style="bold") + Text(aliases))
    out.print(Text(inspect.getdoc(converter.fn) or "No description."))
    for heading, body in (
        ("Dataset", converter.dataset or "Not given."),
        ("Columns it reads", ", ".join(converter.columns)),
        ("In a recipe", f"dataset_converter: {converter.name}"),
        ("Defined in", converter.origin),
    ):
        out.print(Text(f"\n{heading}", style="bold"))
        out.print(Text(body))
