"""The prompts that evaluation samples from: which rows of a dataset, and their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from .format import format_dataset


def prompt_text(prompt: str | Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Return a prompt as the model reads it: text unchanged, a conversation through the chat template.

    Args:
        prompt: text, or messages with role and content.
        tokenizer: the model's tokenizer.
    """
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


def first_rows(dataset: Dataset | IterableDataset, count: int, *, name: str) -> Dataset | IterableDataset:
    """Return the first `count` rows in the internal form, without the invalid and all-tied ones among them.

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
    """Return the text of the first prompts of a test split.

    Args:
        dataset: rows in any accepted form; may stream.
        tokenizer: the model's tokenizer.
        count: number of rows to read.

    Returns:
        at most `count` prompts; invalid and all-tied rows have none.
    """
    return [prompt_text(row["prompt"], tokenizer) for row in first_rows(dataset, count, name="test")]
