"""Columns of structs: Arrow stores None for keys that only other rows have, and a row's own None looks the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

# Below these, a None may mean something; of the keys of a message, none does.
_MEANT = ("tools", "arguments")


def padded_columns(dataset: Dataset | IterableDataset) -> set[str]:
    """Return the columns of structs, in which Arrow stores None for keys that only other rows have.

    A JSON column, and a stream from a Python generator, keep each row's own keys.
    """
    features = dataset.features or {}
    return {name for name, feature in features.items() if _is_padded(feature)}


def _is_padded(feature: Any) -> bool:
    if isinstance(feature, dict):
        return True
    inner = getattr(feature, "feature", None)  # of a List
    return inner is not None and _is_padded(inner)


def left_out_nulls(dataset: Dataset) -> list[str]:
    """Return the keys of tools and tool calls that are None in some row, and are therefore left out there.

    Example:
        >>> calls = [{"arguments": {"on": True, "room": None}}, {"arguments": {"on": False, "room": "hill"}}]
        >>> left_out_nulls(Dataset.from_dict({"call": calls}))
        ['call.arguments.room']
    """
    padded = [
        name for name in padded_columns(dataset) if any(word in str((name, dataset.features[name])) for word in _MEANT)
    ]
    tables = dataset.select_columns(padded).with_format("arrow").iter(1000) if padded else ()
    return sorted({path for table in tables for name in padded for path in _nulls(table[name], (name,))})


def _may_mean_something(name: str, feature: Any) -> bool:
    return any(word in name or word in str(feature) for word in _MEANT)


def _nulls(column: pa.ChunkedArray | pa.Array, path: tuple[str, ...]) -> Iterator[str]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    for chunk in chunks:
        if pa.types.is_struct(chunk.type):
            rows = chunk.filter(chunk.is_valid())
            for field in chunk.type:
                key = (*path, field.name)
                values = rows.field(field.name)
                if values.null_count and set(_MEANT) & set(path):
                    yield ".".join(key)
                yield from _nulls(values, key)
        elif pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            yield from _nulls(chunk.flatten(), path)
