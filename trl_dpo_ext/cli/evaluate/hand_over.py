"""Hand a model over to another program: the command line is printed, then run."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence


def add_program_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every hand-over."""
    command.add_argument("--print", action="store_true", dest="only_print", help="print the command, don't run it")
    command.add_argument(
        "--pass-on", default="", help='options that go to the program as they are: --pass-on="--limit 5"'
    )


def run_program(command: Sequence[str], package: str, arguments: argparse.Namespace) -> None:
    """Print a command, and run it unless asked not to.

    Args:
        command: the program and its arguments.
        package: what to install with pip if the program is missing.
        arguments: those of `add_program_options`.

    Raises:
        ValueError: the program is missing, or failed.
    """
    more = shlex.split(arguments.pass_on)
    line = shlex.join([*command, *more])
    print(line, flush=True)
    if arguments.only_print:
        return
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed: pip install {package}. It runs the command above.")
    print(f"Running {command[0]}.", file=sys.stderr, flush=True)
    code = subprocess.run([*command, *more], check=False).returncode
    if code:
        raise ValueError(f"{command[0]} ended with exit code {code}; its messages are above.")
