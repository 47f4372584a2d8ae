"""Where commands print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Return the console of standard output."""
    from rich.console import Console

    # A pipe or a file has no width of its own; there a row shouldn't break.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)
