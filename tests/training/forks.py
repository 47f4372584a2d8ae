"""Run work in forked processes. This is much cheaper than starting new ones: torch and TRL are already imported."""

from __future__ import annotations

import os
import select
import traceback
from collections.abc import Callable
from typing import Any

from accelerate.state import AcceleratorState, GradientState

from tests import helpers


def _fork(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; return its `os.waitpid` status (0, a signal number, or exit code << 8)."""
    return os.waitpid(_fork(work), 0)[1]


def in_two_ranks(work: Callable[[int], Any]) -> list[int]:
    """Run `work(rank)` in two processes that form a process group; return their statuses."""
    port = helpers.free_port()
    ended, working = os.pipe()  # reads end-of-file once neither process holds `working`

    def join(rank: int) -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        os.environ.update(
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        )
        try:
            work(rank)
        finally:  # leaving first would break messages the other still expects; wait at most half a minute
            os.close(working)
            select.select([ended], [], [], 30)

    children = [_fork(lambda rank=rank: join(rank)) for rank in range(2)]
    os.close(working)
    os.close(ended)
    return [os.waitpid(child, 0)[1] for child in children]
