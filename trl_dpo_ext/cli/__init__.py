"""The command line: `trl-dpo-ext COMMAND`, one module a command. Whatever is heavy is imported where a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from . import card, converters, evaluate, lint, losses, memory, merge, push

COMMANDS = (losses, converters, lint, memory, evaluate, merge, push, card)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for a mistake on the command line, or what the command says."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("trl-dpo-ext", description="Preference losses, trainers and evaluation on TRL.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
