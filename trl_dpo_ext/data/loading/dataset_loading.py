"""Load a dataset by its name: a Hub id, a folder, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...registry import did_you_mean
from ..data_error import DataError, FaultReason
from .broken_files import holds_no_row, why_unreadable
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
    path = Path(name).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
    try:
        if path.is_file():
            kind = _kind(path)
            if kind is None:
                raise DataError(f"dataset_name={name!r} is not a {', '.join(FILE_KINDS)} file.")
            dataset = load_exactly(kind, data_files=str(path), streaming=streaming)
        elif path.is_dir() or (name.count("/") == 1 and name[0] not in "./~"):
            dataset = load_exactly(name, name=config, streaming=streaming)
        else:
            raise FileNotFoundError(f"dataset_name={name!r} is no folder or file here, and no Hub id (owner/name).")
        if streaming and (empty := [file for file in files if holds_no_row(file)]):
            raise DataError(
                f"dataset_name={name!r} can't be read. {empty[0]}: the file has no rows.", FaultReason.UNREADABLE_FILE
            )
        if not streaming:
            for split in dataset.values():
                # The JSON reader accepts any bytes; they would raise only where the row is used.
                split.data.table.validate(full=True)
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # each format's reader raises its own errors
        if not files:
            raise
        raise DataError(
            f"dataset_name={name!r} can't be read. {why_unreadable(files, error)}", FaultReason.UNREADABLE_FILE
        ) from error
    if needs is not None and needs not in dataset:
        raise DataError(
            f"dataset_name={name!r} has no split {needs!r}.{did_you_mean(needs, dataset)} It has: {', '.join(dataset)}."
        )
    return dataset


def _kind(file: Path) -> str | None:
    return next((FILE_KINDS[suffix] for suffix in reversed(file.suffixes) if suffix in FILE_KINDS), None)
