"""Completions of other prompts, from which KTO estimates its KL term: one more response of each prompt's group."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets

from .data_error import DataError, FaultReason

COLUMN = "mismatched"
_PREVIOUS = "_previous_completion_ids"


def with_mismatched(dataset: Dataset | IterableDataset, *, name: str, max_length: int | None) -> Any:
    """Add to each row the completion of the nearest row before it that has another prompt.

    The first rows take theirs from the end of the dataset; a streamed dataset is closed to a ring every 1,000 rows.
    This is decided here, before anything shuffles, so that a resumed run and the stored reference log-probs have the
    same.

    Args:
        dataset: tokenized rows, see `tokenize_dataset`.
        name: the dataset's name, for messages ("train").
        max_length: tokens of prompt and completion together; the completion loses its end. None without a limit.

    Returns:
        The rows, with one more list at the end of `completion_ids` and of all columns with a value per response, and
        a column `mismatched`, which is true. The first completion of the other row is taken.

    Raises:
        DataError: all rows have the same prompt.
    """
    if isinstance(dataset, IterableDataset):
        features = dataset.features
        changed = dataset.map(
            _ring,
            batched=True,
            fn_kwargs={"name": name, "max_length": max_length},
            features=None if features is None else Features({**features, COLUMN: Value("bool")}),
        )
        return changed
    previous = dataset.select(_previous(dataset["prompt_ids"], name)).select_columns("completion_ids")
    both = concatenate_datasets([dataset, previous.rename_column("completion_ids", _PREVIOUS)], axis=1)
    features = Features({**dataset.features, COLUMN: Value("bool")})
    return both.map(
        _append,
        fn_kwargs={"max_length": max_length},
        features=features,
        remove_columns=[_PREVIOUS],
        desc=f"Adding mismatched completions to the {name} dataset",
    )


def _previous(prompts: Any, name: str) -> np.ndarray:
    """Return for each row the nearest row before it, around the end, whose prompt is another one."""
    prompts = list(prompts)
    others = np.empty(len(prompts), dtype=np.int64)
    last = next((i for i in range(len(prompts) - 1, 0, -1) if prompts[i] != prompts[0]), None)
    if last is None:
        raise DataError(
            f"{name} dataset: all {len(prompts)} rows have the same prompt, so there is no completion of another one, "
            "which the KL term of kto needs. Add rows with other prompts, or choose apo_zero_unpaired.",
            FaultReason.OTHER,
        )
    others[0] = last
    for i in range(1, len(prompts)):
        others[i] = i - 1 if prompts[i] != prompts[i - 1] else others[i - 1]
    return others


def _append(row: dict[str, Any], max_length: int | None) -> dict[str, Any]:
    return _with_completion(row, row[_PREVIOUS][0], max_length)


def _with_completion(row: dict[str, Any], ids: list[int], max_length: int | None) -> dict[str, Any]:
    room = None if max_length is None else max_length - len(row["prompt_ids"])
    fillers = {"ranks": 0, "scores": 0.0, "labels": None}
    changed = {column: [*row[column], filler] for column, filler in fillers.items() if row.get(column) is not None}
    return {**changed, "completion_ids": [*row["completion_ids"], list(ids)[:room]], COLUMN: True}


def _ring(batch: dict[str, list[Any]], name: str, max_length: int | None) -> dict[str, list[Any]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    others = _previous([row["prompt_ids"] for row in rows], name)
    changed = [
        {**row, **_with_completion(row, rows[other]["completion_ids"][0], max_length)}
        for row, other in zip(rows, others, strict=True)
    ]
    return {column: [row[column] for row in changed] for column in changed[0]}
