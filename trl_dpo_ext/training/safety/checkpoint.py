"""Write checkpoints atomically, find the newest complete one, and delete old ones.

A checkpoint is complete if it has a list of its files, which is written last, and every file has the size listed. The
one that a run resumes from must also have the listed checksums.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, DiskSpaceError
from .checkpoint_files import read_marker, why_damaged, why_incomplete, write_marker
from .disk_errors import free_space, why_not_written
from .engines import Engine
from .together import from_main_process, raise_on_all

logger = logging.getLogger(__name__)

_ASKS_FOR_NEWEST = ("true", "latest", "last")
_ASKS_FOR_NONE = ("", "false", "none", "no")


def checkpoints(run_folder: str | Path) -> dict[int, Path]:
    """Return all checkpoint folders of a run by step, in ascending order, complete or not."""
    found = {}
    for path in Path(run_folder).glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def newest_complete(run_folder: str | Path) -> Path | None:
    """Return the complete checkpoint with the highest step, or None."""
    return next((path for path in reversed(checkpoints(run_folder).values()) if why_incomplete(path) is None), None)


def asks_for_newest(asked: str | bool | None) -> bool:
    """Return whether a value of `resume_from_checkpoint` means the newest complete checkpoint."""
    return str(asked).lower() in _ASKS_FOR_NEWEST


def find_checkpoint(asked: str | bool | None, run_folder: str | Path, *, verify: bool = True) -> str | None:
    """Return the checkpoint folder to resume from, the same on all processes. None means: start at step 0.

    Args:
        asked: a checkpoint folder. True, "true", "latest" or "last": the newest complete checkpoint in `run_folder`,
            or step 0 if there is none, so that a job can always be started with the same command. None, False or
            "false": start at step 0.
        run_folder: the run's `output_dir`.
        verify: compare checksums too, which reads the whole checkpoint.

    Raises:
        CheckpointError: the requested checkpoint is incomplete or damaged, or has no optimizer state.
    """
    return from_main_process(lambda: _find(str(asked), Path(run_folder), verify), CheckpointError)


def _find(asked: str, run_folder: Path, verify: bool) -> str | None:
    if asked.lower() in _ASKS_FOR_NONE:
        return None
    problem_of = why_damaged if verify else why_incomplete
    _put_back(run_folder)
    if not asks_for_newest(asked):
        folder = Path(asked)
        if (problem := problem_of(folder)) is not None:
            complete = [str(path) for path in _nearby_checkpoints(folder, run_folder) if why_incomplete(path) is None]
            instead = (
                f"Complete checkpoints: {', '.join(complete)}." if complete else "There is no complete one nearby."
            )
            raise CheckpointError(f"Can't resume from {asked!r}: {problem}. {instead}")
    else:
        for path in reversed(checkpoints(run_folder).values()):
            if (problem := problem_of(path)) is None:
                folder = path
                break
            logger.warning("Not resuming from %s: %s.", path, problem)
        else:
            logger.warning(
                "resume_from_checkpoint=%s: %s has no complete checkpoint. Starting at step 0.", asked, run_folder
            )
            return None
    if not read_marker(folder).resumable:
        raise CheckpointError(
            f"Can't resume from {str(folder)!r}: it has only the weights (save_only_model=True), not the optimizer, "
            "scheduler and random state. Use it as the model of a new run instead."
        )
    logger.info("Resuming from %s.", folder)
    return str(folder)


def _nearby_checkpoints(folder: Path, run_folder: Path) -> list[Path]:
    """Return the checkpoints that the user may have meant: in the folder, next to it, or in the run's folder."""
    for place in (folder, folder.parent, run_folder):
        if found := list(checkpoints(place).values()):
            return found
    return []


@contextlib.contextmanager
def atomic_checkpoint(
    folder: Path, args: Any, state: Any, accelerator: Any, engine: Engine, push: Callable[[Path], None]
) -> Iterator[None]:
    """Let all processes write a checkpoint into `folder`, then mark it as complete, push it, and delete older ones.

    transformers pushes and deletes older checkpoints before our files are written, so a run killed in between would
    have no checkpoint left. A checkpoint of the same step stays until the new one is complete.

    Args:
        folder: the checkpoint's folder.
        args, state, accelerator: attributes of the trainer.
        engine: what writes it.
        push: called with the complete checkpoint if `push_to_hub` is set.

    Raises:
        DiskSpaceError: it can't be written. The earlier checkpoints are intact.
    """
    if args.should_save:
        _make_room(folder)
    accelerator.wait_for_everyone()
    asked = {name: getattr(args, name) for name in ("save_total_limit", "push_to_hub")}
    args.save_total_limit, args.push_to_hub = None, False
    failure = None
    try:
        yield
    except Exception as error:
        if (failure := _unwritten(error)) is None:
            raise
        if not engine.writes_alone:  # the other processes may be waiting for this one's part
            raise _cleaned_up(folder, failure) from error
    finally:
        for name, value in asked.items():
            setattr(args, name, value)
    _stop_together(folder, failure, args, accelerator)
    if args.should_save:
        try:
            torch.save(args, folder / "training_args.bin")  # again, with the user's save_total_limit and push_to_hub
            write_marker(folder, resumable=not args.save_only_model, engine=engine)
            _delete(_replaced(folder))
        except Exception as error:
            if (failure := _unwritten(error)) is None:
                raise
    _stop_together(folder, failure, args, accelerator)
    if args.push_to_hub:
        push(folder)
    if args.should_save:
        best = state.best_model_checkpoint
        rotate(folder.parent, args.save_total_limit, keep=[folder, *([Path(best)] if best else [])])
    accelerator.wait_for_everyone()


def _replaced(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.replaced")


def _make_room(folder: Path) -> None:
    """Take what is in the way of a new checkpoint: a complete one moves aside until the new one is complete."""
    if why_incomplete(folder) is None:
        _delete(_replaced(folder))
        folder.rename(_replaced(folder))
    _delete(folder)


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def _put_back(run_folder: Path) -> None:
    """Put back checkpoints that were being replaced when the run was killed."""
    for path in run_folder.glob("checkpoint-*.replaced"):
        folder = path.with_name(path.name.removesuffix(".replaced"))
        if why_incomplete(folder) is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            path.rename(folder)


def _unwritten(error: Exception) -> DiskSpaceError | None:
    """Return an error with the reason why a file couldn't be written; None for an error of another kind."""
    reason = why_not_written(error)
    return None if reason is None else DiskSpaceError(reason)


def _stop_together(folder: Path, failure: DiskSpaceError | None, args: Any, accelerator: Any) -> None:
    """Let all processes stop if one couldn't write. Nothing is deleted before all have ended writing."""
    try:
        raise_on_all(failure)
    except DiskSpaceError as error:
        failure = error
    if failure is not None:
        said = _cleaned_up(folder, failure) if args.should_save else None
        accelerator.wait_for_everyone()
        raise said or _cleaned_up(folder, failure)


def _cleaned_up(folder: Path, failure: DiskSpaceError) -> DiskSpaceError:
    """Delete what was written of a checkpoint, and return the error that says so."""
    _delete(folder)
    _put_back(folder.parent)
    saved = newest_complete(folder.parent)
    left = f"The last complete checkpoint is {saved}" if saved else "There is no complete checkpoint yet"
    return DiskSpaceError(
        f"{folder} can't be written: {failure}. {free_space(folder.parent)} {left}. Make room or set save_total_limit, "
        "then start again with resume_from_checkpoint: true."
    )


def rotate(run_folder: str | Path, limit: int | None, keep: list[Path]) -> None:
    """Delete checkpoints beyond `limit`: incomplete ones first, then the oldest, never those in `keep`.

    transformers' own rotation counts incomplete checkpoints, and may keep one of them instead of a complete one.

    Args:
        run_folder: the run's `output_dir`.
        limit: number of checkpoints to keep; None or 0 keeps all.
        keep: folders that are never deleted; they count toward the limit.
    """
    if limit is None or limit <= 0:
        return
    kept = {path.resolve() for path in keep if path.is_dir()}
    others = [(step, path) for step, path in checkpoints(run_folder).items() if path.resolve() not in kept]
    others.sort(key=lambda item: (why_incomplete(item[1]) is None, item[1].stat().st_mtime_ns, item[0]))
    for _, path in others[: max(0, len(others) - max(0, limit - len(kept)))]:
        shutil.rmtree(path, ignore_errors=True)
