"""What commands share: where they are added, and where they print."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Commands(Protocol):
    """What `ArgumentParser.add_subparsers` returns; argparse has no public name for it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add a command and return its parser."""
        ...


def console() -> Console:
    """Return the console of standard output."""
    from rich.console import Console

    # A pipe or a file has no width of its own; there a row shouldn't break.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)
