"""A short number for each row of a tokenized dataset, to tell which rows a run was trained on."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

STREAMED_ROWS = 1000  # of a stream, the first rows stand for all
_BATCH = 1000


def row_digests(dataset: Any) -> np.ndarray:
    """Return one number per row, in the order of the rows; of a stream, those of its first 1,000 rows.

    Args:
        dataset: a `Dataset` or `IterableDataset`. The order of the columns and the type
            of the integers don't matter.

    Returns:
        uint64 [N].
    """
    if not hasattr(dataset, "__len__"):
        rows = list(islice(dataset, STREAMED_ROWS))
        return _of_table(pa.Table.from_pylist(rows)) if rows else np.zeros(0, np.uint64)
    parts = [_of_table(table) for table in dataset.with_format("arrow").iter(_BATCH)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def difference(then: np.ndarray, now: np.ndarray) -> str | None:
    """Return a clause that counts the rows added and removed, or None if the rows are the same in the same order.

    Args:
        then, now: results of `row_digests`.

    Example:
        >>> difference(np.array([1, 2, 3]), np.array([1, 3, 4, 5]))
        '2 rows added, 1 removed; the first that differs is row 1'
        >>> difference(np.array([1, 2, 3]), np.array([1, 3, 2]))
        'the same rows in another order; the first that differs is row 1'
    """
    if np.array_equal(then, now):
        return None
    shared = min(len(then), len(now))
    changed = np.flatnonzero(then[:shared] != now[:shared])
    first = f"the first that differs is row {changed[0] if len(changed) else shared}"
    before, after = Counter(then.tolist()), Counter(now.tolist())
    added, removed = (after - before).total(), (before - after).total()
    if not added and not removed:
        return f"the same rows in another order; {first}"
    return f"{added} rows added, {removed} removed; {first}"


def _of_table(table: pa.Table) -> np.ndarray:
    hashers = [xxhash.xxh3_64() for _ in range(table.num_rows)]
    for name in sorted(set(table.column_names) - {"row"}):  # the row's number, which an inserted row moves
        for hasher, part in zip(hashers, _bytes_of(table[name].combine_chunks()), strict=True):
            hasher.update(f"{name}:{len(part)}:".encode())
            hasher.update(part)
    return np.array([hasher.intdigest() for hasher in hashers], np.uint64)


def _bytes_of(array: pa.Array) -> list[bytes]:
    """Return the bytes of each element. Lists of numbers, which are most of the data, are never made Python lists."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ListArray | pa.LargeListArray) and not array.null_count:
        bounds = array.offsets.to_numpy()
        inner = array.values
        if (pa.types.is_integer(inner.type) or pa.types.is_boolean(inner.type)) and not inner.null_count:
            values = inner.to_numpy(zero_copy_only=False).astype(np.int64)
            return [values[a:b].tobytes() for a, b in pairwise(bounds)]
        parts = _bytes_of(inner)
        return [b"".join(b"%d:%b" % (len(part), part) for part in parts[a:b]) for a, b in pairwise(bounds)]
    return [repr(value).encode() for value in array.to_pylist()]
