"""A dataset by its name: a Hub id, a folder, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import load_dataset

from ..registry import did_you_mean
from .broken_files import why_unreadable
from .rows import DataError

FILE_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
UNREADABLE = "unreadable file"


def load_splits(name: str, *, config: str | None = None, streaming: bool = False, needs: str | None = None) -> Any:
    """Load all splits of a dataset.

    Args:
        name: Hub id, folder (with train and test files, say), or one .json, .jsonl(.gz), .csv or .parquet file.
        config: the configuration (subset), where the dataset has several.
        streaming: read rows as they are used.
        needs: a split that has to be there.

    Returns:
        A `DatasetDict`, or an `IterableDatasetDict` where it streams; of a single file, with the split `train`.

    Raises:
        FileNotFoundError: nothing has this name.
        DataError: a file of another kind, no split `needs`, or (with the reason `UNREADABLE`) a file that is empty,
            damaged, not UTF-8 or not JSON; the message names file and line.
    """
    path = Path(name).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
    try:
        if path.is_file():
            kind = _kind(path)
            if kind is None:
                raise DataError(f"dataset_name={name!r} is not a {', '.join(FILE_KINDS)} file.")
            dataset = load_dataset(kind, data_files=str(path), streaming=streaming)
        elif path.is_dir() or (name.count("/") == 1 and name[0] not in "./~"):
            dataset = load_dataset(name, name=config, streaming=streaming)
        else:
            raise FileNotFoundError(f"dataset_name={name!r} is no folder or file here, and no Hub id (owner/name).")
        if not streaming:
            for split in dataset.values():
                # The JSON reader lets any bytes through; they would raise where the row is used.
                split.data.table.validate(full=True)
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # each format's reader raises what it likes
        if not files:
            raise
        raise DataError(f"dataset_name={name!r} can't be read. {why_unreadable(files, error)}", UNREADABLE) from error
    if needs is not None and needs not in dataset:
        raise DataError(
            f"dataset_name={name!r} has no split {needs!r}.{did_you_mean(needs, dataset)} It has: {', '.join(dataset)}."
        )
    return dataset


def _kind(file: Path) -> str | None:
    return next((FILE_KINDS[suffix] for suffix in reversed(file.suffixes) if suffix in FILE_KINDS), None)
