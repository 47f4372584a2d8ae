"""The command line, `trl-dpo-ext COMMAND`. Each module of this folder is a command and imports what is heavy late."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from ..registry import import_all
from ._errors import EXPECTED, exit_code

__all__ = ["exit_code", "main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for a mistake on the command line, or the command's own."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not getattr(arguments, "takes_options", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.options = rest
    return exit_code(lambda: int(arguments.run(arguments)), getattr(arguments, "expected", EXPECTED))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. A command is a module of this folder with a function `add(commands)`."""
    parser = argparse.ArgumentParser("trl-dpo-ext", description="Preference losses, trainers and evaluation on TRL.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in import_all(__name__):
        module.add(commands)
    return parser
