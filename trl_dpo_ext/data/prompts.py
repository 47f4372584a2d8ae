"""The prompts that evaluation samples from: rows of a dataset, with the token ids that training gives their prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from .data_error import DataError, FaultReason
from .format import format_dataset
from .reads import Reads
from .rendering.left_out_text import left_out
from .rendering.prompt_rendering import prompt_text, prompt_token_ids
from .tokenize import tokenize_row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as text and as the tokens that the model reads.

    It is not a string, so nobody edits the text and leaves the tokens behind.

    Attributes:
        text: what rewards, judges and tables read; a conversation is rendered with the chat template.
        token_ids: [P] what the model reads.
    """

    text: str
    token_ids: tuple[int, ...]


def tokenized_prompt(row: Mapping[str, Any], tokenizer: Any) -> TokenizedPrompt:
    """Return the prompt of a row with the token ids that `tokenize_row` gives it.

    Args:
        row: `prompt` (text or messages), and where the row has them `tools`, `chat_template_kwargs` and `completions`.
            The completions count because the last tokens of a prompt may change when a completion follows.
        tokenizer: the model's tokenizer.

    Raises:
        DataError: the chat template or the tokenizer refuses the row or leaves out text of the prompt, or the prompt
            has no tokens.
    """
    where = f"row {row['row']}" if "row" in row else f"the prompt {str(row['prompt'])[:60]!r}"
    try:
        tokens = tokenize_row({"completions": [], **row}, tokenizer)
        missing = left_out({**row, "completions": []}, tokens, tokenizer)
        text = prompt_text(row["prompt"], tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
    except Exception as error:  # a chat template is a program and may fail in any way
        what = "tokenizer" if isinstance(row["prompt"], str) else "chat template"
        raise DataError(
            f"{where}: the {what} refuses it ({type(error).__name__}: {error}).", FaultReason.CANNOT_TOKENIZE
        ) from error
    if missing is not None:
        raise DataError(f"{where}: the chat template leaves out {missing}.", FaultReason.TEXT_LEFT_OUT)
    if not tokens["prompt_ids"]:
        raise DataError(f"{where} has no tokens: the model has nothing to continue.")
    return TokenizedPrompt(text, tuple(tokens["prompt_ids"]))


def plain_prompt(text: str, tokenizer: Any) -> TokenizedPrompt:
    """Return a plain-text prompt as training tokenizes it, but without doubling a BOS that the text has already.

    Raises:
        ValueError: it has no tokens.
    """
    if not (ids := one_bos(prompt_token_ids(text, tokenizer), tokenizer)):
        raise ValueError(f"The prompt {text!r} has no tokens: the model has nothing to continue.")
    return TokenizedPrompt(text, tuple(ids))


def one_bos(ids: list[int], tokenizer: Any) -> list[int]:
    """Drop the second BOS that the tokenizer adds to a text that already starts with one."""
    return ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids


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
    return format_dataset(first, name=name, invalid_rows="drop", reads=Reads(single_responses=True))


def held_out_prompts(dataset: Dataset | IterableDataset, tokenizer: Any, count: int) -> list[TokenizedPrompt]:
    """Return the first prompts of a test split, tokenized as training tokenizes the prompts of its rows.

    Args:
        dataset: rows in any accepted form; may stream.
        tokenizer: the model's tokenizer.
        count: number of rows to read.

    Returns:
        at most `count` prompts. Rows that are invalid, all tied or refused by the chat template are left out.

    Raises:
        DataError: no row is left.
    """
    prompts, refused = [], []
    for row in first_rows(dataset, count, name="test"):
        try:
            prompts.append(tokenized_prompt(row, tokenizer))
        except DataError as error:
            refused.append(error)
    if refused and not prompts:
        raise DataError(f"test dataset: none of its prompts can be sampled from. The first: {refused[0]}")
    if refused:
        logger.warning(
            "test dataset: left out %d of %d prompts. The first: %s",
            len(refused),
            len(refused) + len(prompts),
            refused[0],
        )
    return prompts
