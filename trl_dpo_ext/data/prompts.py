"""The prompts that evaluation samples from: which rows of a dataset, and their text."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset, IterableDataset

from .data_error import DataError, FaultReason
from .format import format_dataset
from .rendering.prompt_rendering import prompt_text

logger = logging.getLogger(__name__)

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
        at most `count` prompts; rows that are invalid, all-tied or refused by the chat template have none.

    Raises:
        DataError: the chat template refuses all of them.
    """
    texts = [_render(row, tokenizer) for row in first_rows(dataset, count, name="test")]
    if texts and not any(text is not None for text in texts):
        raise DataError(
            f"test dataset: the chat template refuses all of the first {len(texts)} prompts.",
            FaultReason.CANNOT_TOKENIZE,
        )
    return [text for text in texts if text is not None]


def _render(row: dict[str, Any], tokenizer: Any) -> str | None:
    """Return the text of a row's prompt, or None, with a warning, where the chat template refuses it."""
    try:
        return prompt_text(row["prompt"], tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
    except Exception as error:  # a chat template is a program and may fail in any way
        logger.warning(
            "test dataset, row %d: the chat template refuses its prompt, so it is left out (%s: %s).",
            row["row"],
            type(error).__name__,
            error,
        )
        return None
