"""Load a dataset by its name: a Hub id, a folder, or a file."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from ...registry import did_you_mean
from ..data_error import DataError, FaultReason
from .broken_files import why_unreadable
from .exact_types import load_exactly

FILE_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_splits(name: str, *, config: str | None = None, streaming: bool = False, needs: str | None = None) -> Any:
    """Load all splits of a dataset.

    Args:
        name: Hub id, folder (with train and test files, say), or one .json, .jsonl(.gz), .csv or .parquet file.
        config: the configuration (subset), where the dataset has several.
        streaming: read rows only as they are used.
        needs: a split that must exist.

    Returns:
        A `DatasetDict`, or an `IterableDatasetDict` if it streams. A single file is the split `train`.

    Raises:
        FileNotFoundError: there is no such file or folder, and the name is no Hub id.
        DataError: a file of another kind, no split `needs`, or a file that is empty, damaged, not UTF-8 or not JSON;
            the last has the reason `UNREADABLE_FILE`, and its message names file and line.
    """
    path, files = _local(name)
    try:
        if path.is_file():
            kind = _kind(path)
            if kind is None:
                raise DataError(f"dataset_name={name!r} is not a {', '.join(FILE_KINDS)} file.")
            # `datasets` takes every path for a pattern.
            dataset = load_exactly(kind, data_files=glob.escape(str(path.absolute())), streaming=streaming)
        elif path.is_dir() and glob.has_magic(str(path.resolve())):
            kind = next(filter(None, map(_kind, files)), "json")
            dataset = load_exactly(kind, data_dir=glob.escape(str(path.resolve())), streaming=streaming)
        elif path.is_dir():
            dataset = load_exactly(str(path), name=config, streaming=streaming)
        elif name.count("/") == 1 and name[0] not in "./~" and ":" not in name:
            dataset = load_exactly(name, name=config, streaming=streaming)
        else:
            raise FileNotFoundError(f"dataset_name={name!r} is no folder or file here, and no Hub id (owner/name).")
        if not streaming:
            for split in dataset.values():
                # The JSON reader accepts any bytes; they would raise only where the row is used.
                split.data.table.validate(full=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # each format's reader raises its own errors
        if isinstance(error, DataError) and error.reason is not FaultReason.UNREADABLE_FILE:
            raise
        if not files:
            raise DataError(f"dataset_name={name!r} can't be loaded: {_one_line(error)}") from error
        raise DataError(
            f"dataset_name={name!r} can't be read. {why_unreadable(files, error)}", FaultReason.UNREADABLE_FILE
        ) from error
    if needs is not None and needs not in dataset:
        raise DataError(
            f"dataset_name={name!r} has no split {needs!r}.{did_you_mean(needs, dataset)} It has: {', '.join(dataset)}."
        )
    return dataset


def _local(name: str) -> tuple[Path, list[Path]]:
    """Return the path that a name may mean, and its data files; neither need exist."""
    if not name.strip():
        raise FileNotFoundError("dataset_name is empty: give a Hub id (owner/name), a folder or a file.")
    path = Path(name).expanduser()
    try:
        path.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be read
        raise FileNotFoundError(f"dataset_name={name[:100]!r} can't be opened: {error.strerror}.") from None
    if "::" in str(path) and path.exists():
        raise DataError(f"dataset_name={name!r}: `datasets` takes '::' for a file in an archive. Rename it.")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
    return path, files


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _kind(file: Path) -> str | None:
    return next((FILE_KINDS[suffix] for suffix in reversed(file.suffixes) if suffix in FILE_KINDS), None)
