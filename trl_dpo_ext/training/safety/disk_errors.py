"""Tell a file that can't be written from other errors, whoever writes it, and say so in a sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

# What `torch.save` and safetensors raise has no errno.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
_FROM_TORCH = re.compile(r"PytorchStreamWriter|inline_container|file write failed|iostream", re.IGNORECASE)


def why_not_written(error: BaseException) -> str | None:
    """Return a clause that says why a file couldn't be written, or None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, SafetensorError) or _FROM_TORCH.search(str(error)):
        writer = "safetensors" if isinstance(error, SafetensorError) else "torch"
        return f"{writer} says {' '.join(str(error).split())[:200]!r}"
    return None


def free_space(folder: str | Path) -> str:
    """Return a sentence that says how much room the disk of a folder has; empty if that isn't known."""
    try:
        return f"The disk has {shutil.disk_usage(folder).free / 2**30:.2f} GiB left."
    except OSError:
        return ""
