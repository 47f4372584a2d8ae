"""Tell a file that can't be written from other errors, whoever writes it, and say so in a sentence."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

# What torch, safetensors and tokenizers raise has no errno; that of tokenizers is a plain Exception.
_FROM_RUST = re.compile(r"\(os error \d+\)$")
_FROM_TORCH = re.compile(r"PytorchStreamWriter|inline_container|file write failed|iostream", re.IGNORECASE)


def why_not_written(error: BaseException) -> str | None:
    """Return a clause that says why a file couldn't be written, or None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = " ".join(str(error).split())[:200]
    if isinstance(error, SafetensorError):
        return f"safetensors says {text!r}"
    if isinstance(error, RuntimeError) and _FROM_TORCH.search(text):
        return f"torch says {text!r}"
    return text if type(error) is Exception and _FROM_RUST.search(text) else None


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk has no room. torch's writer doesn't say why it failed: it counts."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return why_not_written(error) is not None


def free_space(folder: str | Path) -> str:
    """Return a sentence that says how much room the disk of a folder has; empty if that isn't known."""
    try:
        return f"The disk has {shutil.disk_usage(folder).free / 2**30:.2f} GiB left."
    except OSError:
        return ""
