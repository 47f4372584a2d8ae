"""The prompts that evaluation samples from: which rows of a dataset, and their text."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset

from .format import format_dataset
from .rendering.prompt_rendering import prompt_text

__all__ = ["first_rows", "held_out_prompts", "prompt_text"]


def first_rows(dataset: Dataset | IterableDataset, count: int, *, name: str) -> Dataset | IterableDataset:
    """Return the first `count` rows as ranked rows, without the invalid and all-tied ones among them.

    Args:
        dataset: rows in any accepted form; may stream.
        count: number of rows to read.
        name: name of the dataset, for messages ("test").
    """
    if isinstance(dataset, IterableDataset):
        first: Dataset | IterableDataset = dataset.take(count)
    else:
        first = dataset.select(range(min(count, len(dataset))))
    return format_dataset(first, name=name, invalid_rows="drop")


def held_out_prompts(dataset: Dataset | IterableDataset, tokenizer: Any, count: int) -> list[str]:
    """Return the text of the first prompts of a test split, with their own tools and template arguments.

    Args:
        dataset: rows in any accepted form; may stream.
        tokenizer: the model's tokenizer.
        count: number of rows to read.

    Returns:
        at most `count` prompts; invalid and all-tied rows have none.
    """
    return [
        prompt_text(row["prompt"], tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
        for row in first_rows(dataset, count, name="test")
    ]
