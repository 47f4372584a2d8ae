"""accelerate's launcher, called instead of started, so that its own traceback doesn't bury what a process has said."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Sequence

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

logger = logging.getLogger(__name__)


def launch(arguments: Sequence[str]) -> int:
    """Start processes as `accelerate launch` does, and wait for them.

    Args:
        arguments: those of `accelerate launch`: options, script, the script's own arguments.

    Returns:
        0, or the exit code of the process that failed first: 128 + N if signal N ended it, as in shells.
    """
    try:
        launch_command(launch_command_parser().parse_args(list(arguments)))
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode < 0:
            logger.error("Process %d was ended by %s.%s", rank, _name(-first.exitcode), _why(-first.exitcode))
        return _code(first.exitcode)
    except subprocess.CalledProcessError as failed:  # accelerate starts a single process without torchrun
        return _code(failed.returncode)
    except SignalException as ended:
        return 128 + int(ended.sigval)
    return 0


def _code(exit_code: int) -> int:
    return exit_code if exit_code >= 0 else 128 - exit_code


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _why(number: int) -> str:
    return " Often the machine has run out of memory." if number == signal.SIGKILL else ""
