"""Datasets of several forms as one: pairs, rankings, scores and labels in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from .data_error import DataError, FaultReason
from .format import format_dataset, reading_of
from .map_rows import InvalidRows
from .reads import Reads

# Whatever the losses of a run read, the rows keep what they have.
_EVERYTHING = Reads(ties=True, single_responses=True, labels=True, reference_scores=True, weight=True)


def mix_datasets(
    datasets: Mapping[str, Dataset],
    fractions: Sequence[float] | None = None,
    *,
    invalid_rows: InvalidRows = "error",
    num_proc: int | None = None,
) -> Dataset:
    """Return several datasets, each in any accepted form, as one that a trainer takes.

    Args:
        datasets: by name; the names are those in messages.
        fractions: the share of each in the mixture, in any unit. As in TRL, the mixture is as large as it can be
            without repeating a row, and the first rows of each are taken. None takes all rows of all.
        invalid_rows, num_proc: see `format_dataset`.

    Returns:
        The rows in their order, one dataset after the other, in the form "responses with labels"; a row has None for
        the labels, scores, reference_scores and weight that it doesn't have.

    Raises:
        DataError: unusable rows; texts in one dataset and messages in another; no dataset.
        ValueError: not one positive fraction for each dataset.
    """
    if not datasets:
        raise DataError("The mixture has no datasets.", FaultReason.NO_ROWS)
    parts = [
        format_dataset(part, name=name, reads=_EVERYTHING, invalid_rows=invalid_rows, num_proc=num_proc)
        for name, part in datasets.items()
    ]
    if fractions is not None:
        if len(fractions) != len(parts) or min(fractions) <= 0:
            raise ValueError(
                f"fractions={list(fractions)} must be one positive number for each of {len(parts)} datasets."
            )
        shares = [fraction / sum(fractions) for fraction in fractions]
        total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
        parts = [part.select(range(round(total * share))) for part, share in zip(parts, shares, strict=True)]
    texts = {name: isinstance(part[0]["prompt"], str) for name, part in zip(datasets, parts, strict=True) if len(part)}
    if len(set(texts.values())) > 1:
        plain = next(name for name, is_text in texts.items() if is_text)
        messages = next(name for name, is_text in texts.items() if not is_text)
        raise DataError(
            f"The mixture has texts ({plain}) and messages ({messages}). Write all of it as one of the two.",
            FaultReason.MIXED_TYPES,
        )
    return concatenate_datasets([part.remove_columns("row") for part in parts])


def separate_forms(dataset: Dataset, *, name: str, num_proc: int | None = None) -> Dataset:
    """Return a dataset whose rows have different forms as one in a single form; any other comes back unchanged.

    The rows of one form are those with values in the same columns. Their order is kept.

    Args:
        dataset: the rows.
        name: the dataset's name, for messages ("train").
        num_proc: see `format_dataset`.

    Raises:
        DataError: the rows with some columns are in no accepted form, or a row is unusable, whatever `invalid_rows`
            says: what is left would be in another order.
    """
    dataset = dataset.with_format(None)
    try:
        reading_of(dataset, name)
    except DataError as error:
        groups = _by_columns(dataset)
        if error.reason is not FaultReason.TWO_FORMS or len(groups) < 2:
            raise
        parts = {
            f"{name} (its {len(rows)} rows with {', '.join(columns)})": dataset.select(rows).select_columns(
                list(columns)
            )
            for columns, rows in groups.items()
        }
        mixed = mix_datasets(parts, invalid_rows="error", num_proc=num_proc)
        return mixed.select(np.argsort(np.concatenate(list(groups.values()))))
    return dataset


def _by_columns(dataset: Dataset) -> dict[tuple[str, ...], list[int]]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(dataset):
        filled: Any = tuple(column for column, value in row.items() if value is not None)
        groups.setdefault(filled, []).append(number)
    return groups
