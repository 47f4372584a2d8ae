"""How every command ends: an exit code, and for what a user can put right a sentence, not a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ._processes import is_after_another, tell_launcher

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
            if is_after_another(error):
                return 1
            what = f"{type(error).__name__}: {error}"
            tell_launcher(f"error: process {os.environ.get('RANK', '0')}: {what}\nIts traceback is above.")
            raise
        print(f"error: {error}", file=sys.stderr)
        tell_launcher(f"error: {error}")
        return code


def _code(error: Exception) -> int | None:
    from ..run.user_errors import FAILURES, USER_ERRORS

    if isinstance(error, FAILURES):
        return 1
    return 2 if isinstance(error, USER_ERRORS) else None
