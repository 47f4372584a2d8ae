"""complete.json: the files of a checkpoint with their sizes and checksums, and the engine that wrote them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import xxhash
from pydantic import Field

from ...record import Record, read_record, write_json
from .engines import Engine

MARKER = "complete.json"
_CHUNK_BYTES = 1 << 22


class CheckpointFiles(Record):
    """The content of complete.json.

    Attributes:
        files: size in bytes by path inside the checkpoint.
        resumable: whether it holds optimizer, scheduler and random state.
        checksums: xxh3-128 of each file, in hexadecimal. Empty in checkpoints of earlier versions.
        engine: what wrote it. None in checkpoints of earlier versions.
    """

    files: dict[str, int]
    resumable: bool
    checksums: dict[str, str] = Field(default_factory=dict)
    engine: Engine | None = None


def write_marker(folder: Path, resumable: bool, engine: Engine | None) -> None:
    """Flush all files of a checkpoint to disk, then write `complete.json`."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        _flush(path)
    files = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file() and path.name != MARKER}
    content = CheckpointFiles(
        files={name: path.stat().st_size for name, path in files.items()},
        resumable=resumable,
        checksums={name: checksum(path) for name, path in files.items()},
        engine=engine,
    )
    write_json(folder / MARKER, content.model_dump())
    for path in (folder / MARKER, folder, folder.parent):
        _flush(path)


def read_marker(folder: str | Path) -> CheckpointFiles:
    """Read `complete.json`.

    Raises:
        ValueError: a clause that says what is wrong.
    """
    path = Path(folder) / MARKER
    try:
        return read_record(path, CheckpointFiles, lambda message: ValueError(_clause(message, path)), "")
    except FileNotFoundError:
        raise ValueError(
            f"it has no {MARKER}, which is written last (the run was killed before that, or another program wrote it)"
        ) from None


def _clause(message: str, path: Path) -> str:
    return "its " + message.removeprefix(f"{path.parent}{os.sep}").rstrip(" .")


def why_incomplete(folder: str | Path) -> str | None:
    """Return a clause that says why a checkpoint is incomplete, or None if it is complete. It compares sizes only."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        content = read_marker(folder)
    except ValueError as error:
        return str(error)
    for name, size in content.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes, but was written with {size}"
    return None


def why_damaged(folder: str | Path) -> str | None:
    """Return a clause that says why a checkpoint can't be used, or None. It reads all files."""
    if (problem := why_incomplete(folder)) is not None:
        return problem
    for name, expected in read_marker(folder).checksums.items():
        try:
            found = checksum(Path(folder) / name)
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        if found != expected:
            return f"{name} isn't what was written: its checksum differs"
    return None


def checksum(content: Path | bytes) -> str:
    """Return the xxh3-128 of a file or of bytes, in hexadecimal."""
    if isinstance(content, bytes):
        return xxhash.xxh3_128_hexdigest(content)
    hasher = xxhash.xxh3_128()
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _flush(path: Path) -> None:
    with (
        contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext()
    ):  # not every file system can flush folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
