"""An output folder belongs to one run at a time, and a fresh run moves an earlier one's checkpoints aside."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState

from ..errors import OutputFolderError
from .checkpoint import checkpoints
from .together import from_main_process

logger = logging.getLogger(__name__)

LOCK = ".in_use"
RESULT = "result.json"  # marks a run as finished
_held: dict[Path, int] = {}  # folders that this process has locked, and how many times


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Keep an output folder for this run. The main process holds the lock; all processes must call this.

    The kernel releases the lock when the process ends, however it ends, so no lock outlives its run. On a network file
    system it works as far as that system's locks do: NFS has them since version 4. Without locks there is a warning.

    Raises:
        OutputFolderError: on all processes, if another run holds it or it can't be written.
    """
    path = Path(folder).absolute()
    handle = from_main_process(lambda: _lock(path), OutputFolderError)
    try:
        yield
    finally:
        if PartialState().is_main_process:
            _release(path, handle)


def refuse_if_in_use(folder: str | Path) -> None:
    """Refuse a folder that another run holds, before anything expensive. It doesn't create the folder.

    Raises:
        OutputFolderError: on all processes, if another run holds it.
    """
    if from_main_process(lambda: (Path(folder) / LOCK).exists(), OutputFolderError):
        with held(folder):
            pass


def _lock(folder: Path) -> int | None:
    # A process's second lock on a file never fails, and closing it would release the first.
    if folder in _held:
        _held[folder] += 1
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            # A process's own lock isn't inherited by processes that it forks, such as a data loader's.
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    other = _holder(handle)
                    os.close(handle)
                    raise OutputFolderError(
                        f"Another run is using {folder}: {other}. Wait until it has ended, or choose another "
                        "output_dir. Two runs in one folder would overwrite each other's checkpoints."
                    ) from None
                logger.warning(f"{folder}: this file system has no locks ({error.strerror}). Start one run at a time.")
                break
            if _is_at(handle, folder / LOCK):  # not a file that its last holder has just deleted
                break
            os.close(handle)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    except OutputFolderError:
        raise
    except OSError as error:
        raise OutputFolderError(
            f"output_dir={str(folder)!r} can't be written: {error.strerror or error}. Choose another output_dir, or "
            "free space."
        ) from error
    _held[folder] = 1
    return handle


def _release(folder: Path, handle: int | None) -> None:
    _held[folder] -= 1
    if _held[folder]:
        return
    del _held[folder]
    assert handle is not None
    with contextlib.suppress(OSError):  # the folder may be gone
        (folder / LOCK).unlink()
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        content = json.loads(os.pread(handle, 1000, 0))
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


def set_aside(run_folder: str | Path) -> Path | None:
    """Move the checkpoints and the result of an earlier run into a folder of their own, and say so.

    A later `resume_from_checkpoint: true` then finds only checkpoints of the run that starts now.

    Returns:
        The folder, or None if there is nothing to move.

    Raises:
        OutputFolderError: on all processes, if they can't be moved.
    """
    moved = from_main_process(lambda: _set_aside(Path(run_folder)), OutputFolderError)
    if moved is not None and PartialState().is_main_process:
        logger.warning(f"{run_folder} holds an earlier run. Moved its checkpoints and its record to {moved}.")
    return moved


def _set_aside(folder: Path) -> Path | None:
    # The record first: without it, the folder doesn't say that its run is finished.
    found = [folder / RESULT] if (folder / RESULT).exists() else []
    found += checkpoints(folder).values()
    if not found:
        return None
    number = 1
    while (place := folder / f"earlier-run-{number}").exists():
        number += 1
    try:
        place.mkdir()
        for path in found:
            path.rename(place / path.name)
    except OSError as error:
        raise OutputFolderError(
            f"{folder} holds an earlier run, and {error.filename} can't be moved to {place}: {error.strerror}. Move it "
            "away, or choose another output_dir."
        ) from error
    return place
