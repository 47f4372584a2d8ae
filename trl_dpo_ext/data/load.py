"""A dataset by its name: a Hub id, a folder, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import load_dataset

from ..registry import did_you_mean
from .rows import DataError

FILE_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


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
        DataError: a file of another kind, or no split `needs`.
    """
    path = Path(name).expanduser()
    if path.is_file():
        kind = next((FILE_KINDS[s] for s in reversed(path.suffixes) if s in FILE_KINDS), None)
        if kind is None:
            raise DataError(f"dataset_name={name!r} is not a {', '.join(FILE_KINDS)} file.")
        dataset = load_dataset(kind, data_files=str(path), streaming=streaming)
    elif path.is_dir() or (name.count("/") == 1 and name[0] not in "./~"):
        dataset = load_dataset(name, name=config, streaming=streaming)
    else:
        raise FileNotFoundError(f"dataset_name={name!r} is no folder or file here, and no Hub id (owner/name).")
    if needs is not None and needs not in dataset:
        raise DataError(
            f"dataset_name={name!r} has no split {needs!r}.{did_you_mean(needs, dataset)} It has: {', '.join(dataset)}."
        )
    return dataset
