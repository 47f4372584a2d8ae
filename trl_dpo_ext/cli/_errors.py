"""How every command ends: an exit code, and for what a user can put right a sentence, not a traceback."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ERROR_FOLDER = "TRL_DPO_EXT_ERROR_FOLDER"
"""Environment variable: a folder where each process that fails leaves its sentence, for the command that started it."""

INTERRUPTED = 130  # as shells have it: 128 + SIGINT

# Commands read files and settings, so these are about what they were given.
EXPECTED: tuple[type[Exception], ...] = (OSError, ValueError, ImportError)


def exit_code(run: Callable[[], int], expected: tuple[type[Exception], ...] = EXPECTED) -> int:
    """Run a command and return its exit code; print "error: ..." to stderr for an error that a user can put right.

    Args:
        run: the command; it returns its own exit code.
        expected: errors, besides those of `trl_dpo_ext.run.user_errors`, whose message is enough.

    Returns:
        What `run` returns, 2 for a mistake in what was given, 1 for something that failed on the way, or 130 after
        Ctrl-C.

    Raises:
        Exception: any other error, which is a bug in this package or in somebody's code; it needs its traceback.
    """
    try:
        return run()
    except KeyboardInterrupt:
        print("\nerror: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = 2 if isinstance(error, expected) else _code(error)
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        _tell_launcher(f"error: {error}")
        return code


def _code(error: Exception) -> int | None:
    from ..run.user_errors import FAILURES, USER_ERRORS

    if isinstance(error, FAILURES):
        return 1
    return 2 if isinstance(error, USER_ERRORS) else None


def _tell_launcher(message: str) -> None:
    # torchrun ends with a traceback of its own. It shows the message below it if it finds it in this file.
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}))
    if folder := os.environ.get(ERROR_FOLDER):
        (Path(folder) / os.environ.get("RANK", "0")).write_text(message, encoding="utf-8")
