"""Write checkpoints atomically, find the newest complete one, and delete old ones.

A checkpoint is complete if it has a list of its files, which is written last, and every file has the size listed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ...record import write_json
from ..errors import CheckpointError

logger = logging.getLogger(__name__)

MARKER = "complete.json"
_ASKS_FOR_NEWEST = ("true", "latest", "last")
_ASKS_FOR_NONE = ("", "false", "none", "no")


def checkpoints(run_folder: str | Path) -> dict[int, Path]:
    """Return all checkpoint folders of a run by step, in ascending order, complete or not."""
    found = {}
    for path in Path(run_folder).glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def why_incomplete(folder: str | Path) -> str | None:
    """Return a clause that says why a checkpoint is incomplete, or None if it is complete."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        files = dict(json.loads((folder / MARKER).read_text())["files"])
    except FileNotFoundError:
        return (
            f"it has no {MARKER}, which is written last (the run was killed before that, or another program wrote it)"
        )
    except (ValueError, KeyError, TypeError):
        return f"its {MARKER} can't be read"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes, but was written with {size}"
    return None


def newest_complete(run_folder: str | Path) -> Path | None:
    """Return the complete checkpoint with the highest step, or None."""
    return next((path for path in reversed(checkpoints(run_folder).values()) if why_incomplete(path) is None), None)


def find_checkpoint(asked: str | bool | None, run_folder: str | Path) -> str | None:
    """Return the checkpoint folder to resume from, the same on all processes. None means: start at step 0.

    Args:
        asked: a checkpoint folder. True, "true", "latest" or "last": the newest complete checkpoint in `run_folder`,
            or step 0 if there is none, so that a job can always be started with the same command. None, False or
            "false": start at step 0.
        run_folder: the run's `output_dir`.

    Raises:
        CheckpointError: the requested checkpoint is incomplete or has no optimizer state.
    """
    answer: list[str | None] = [None, None]
    if PartialState().is_main_process:  # processes may see different states of a shared disk
        try:
            answer[0] = _find(str(asked), Path(run_folder))
        except CheckpointError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise CheckpointError(answer[1])
    return answer[0]


def _find(asked: str, run_folder: Path) -> str | None:
    if asked.lower() in _ASKS_FOR_NONE:
        return None
    if asked.lower() not in _ASKS_FOR_NEWEST:
        folder = Path(asked)
        if (problem := why_incomplete(folder)) is not None:
            complete = [str(path) for path in _nearby_checkpoints(folder, run_folder) if why_incomplete(path) is None]
            instead = (
                f"Complete checkpoints: {', '.join(complete)}." if complete else "There is no complete one nearby."
            )
            raise CheckpointError(f"Can't resume from {asked!r}: {problem}. {instead}")
    else:
        for path in reversed(checkpoints(run_folder).values()):
            if (problem := why_incomplete(path)) is None:
                folder = path
                break
            logger.warning("Not resuming from %s: %s.", path, problem)
        else:
            logger.warning(
                "resume_from_checkpoint=%s: %s has no complete checkpoint. Starting at step 0.", asked, run_folder
            )
            return None
    if not json.loads((folder / MARKER).read_text())["resumable"]:
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
    folder: Path, args: Any, state: Any, accelerator: Any, push: Callable[[Path], None]
) -> Iterator[None]:
    """Let all processes write a checkpoint into `folder`, then mark it as complete, push it, and delete older ones.

    transformers pushes and deletes older checkpoints before our files are written, so a run killed in between would
    have no checkpoint left. Files of an earlier run in the folder are removed first.

    Args:
        folder: the checkpoint's folder.
        args, state, accelerator: attributes of the trainer.
        push: called with the complete checkpoint if `push_to_hub` is set.
    """
    if args.should_save:
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
    asked = {name: getattr(args, name) for name in ("save_total_limit", "push_to_hub")}
    args.save_total_limit, args.push_to_hub = None, False
    try:
        yield
    finally:
        for name, value in asked.items():
            setattr(args, name, value)
    accelerator.wait_for_everyone()
    if args.should_save:
        torch.save(args, folder / "training_args.bin")  # again, with the user's save_total_limit and push_to_hub
        _write_marker(folder, resumable=not args.save_only_model)
    if args.push_to_hub:
        push(folder)
    if args.should_save:
        best = state.best_model_checkpoint
        rotate(folder.parent, args.save_total_limit, keep=[folder, *([Path(best)] if best else [])])
    accelerator.wait_for_everyone()


def _write_marker(folder: Path, resumable: bool) -> None:
    """Flush all files to disk, then write the list of their sizes."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        _flush(path)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    write_json(folder / MARKER, {"files": files, "resumable": resumable})
    for path in (folder / MARKER, folder, folder.parent):
        _flush(path)


def _flush(path: Path) -> None:
    with (
        contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext()
    ):  # not every file system can flush folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
