"""All processes go on with the same answer, or stop with the same error; none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..errors import ConfigError
from .run_settings import RunSettings, changes

T = TypeVar("T")


def from_main_process(work: Callable[[], T], errors: type[Exception]) -> T:
    """Run `work` on the main process, because processes may see different states of a shared disk.

    Args:
        work: its result must be picklable.
        errors: what `work` may raise, with a message as its only argument.

    Returns:
        The main process's result, on all processes.

    Raises:
        errors: on all processes, what `work` raised on the main one.
    """
    answer: list[tuple[T | None, type[Exception], str | None]] = [(None, errors, None)]
    if PartialState().is_main_process:
        try:
            answer[0] = (work(), errors, None)
        except errors as error:
            answer[0] = (None, type(error), str(error))
    broadcast_object_list(answer)
    result, kind, message = answer[0]
    if message is not None:
        raise kind(message)
    return result  # type: ignore[return-value]


def raise_on_all(error: Exception | None) -> None:
    """Let all processes stop if one has an error. Every process must call this.

    Args:
        error: of this process, with a message as its only argument, or None.

    Raises:
        Exception: its own error, or that of the first process that has one, with the process's number.
    """
    found = gather_object([None if error is None else (type(error), str(error))])
    if error is not None:
        raise error
    for rank, failure in enumerate(found):
        if failure is not None:
            kind, message = failure
            raise kind(f"Process {rank}: {message}")


def check_same_settings(settings: RunSettings) -> None:
    """Refuse processes that have different settings. Every process must call this.

    Args:
        settings: see `run_settings` and `shared_settings`.

    Raises:
        ConfigError: on all processes; names every setting that differs.
    """
    first, *others = gather_object([settings])
    for rank, other in enumerate(others, start=1):
        if found := changes(first, other, ("process 0 has", f"process {rank} has")):
            raise ConfigError(
                "The processes have different settings, so they can't train one model:\n"
                + "".join(f"  {clause}\n" for clause in found)
                + "Give every process the same settings."
            )
