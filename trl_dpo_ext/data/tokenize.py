"""Ranked rows to token ids: chat template, EOS, boundaries, truncation, and a report of what was lost."""

from __future__ import annotations

import logging
from functools import partial
from itertools import combinations
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from .data_error import DataError, FaultReason
from .map_rows import InvalidRows, map_rows
from .mismatched import COLUMN
from .reads import Reads
from .rendering.left_out_text import left_out
from .rendering.prompt_rendering import prompt_token_ids, template_options, text_token_ids
from .rendering.template_needs import fit_messages

logger = logging.getLogger(__name__)

_PER_RESPONSE = ("scores", "labels")
_PER_ROW = ("row", "reference_scores", "weight")
TOKEN_COLUMNS = ("row", "prompt_ids", "completion_ids", "ranks", *_PER_RESPONSE, "reference_scores", "weight", COLUMN)
_COUNTS = ["_cut", "_merged"]
_FEATURES = {
    "row": Value("int64"),
    "prompt_ids": List(Value("int64")),
    "completion_ids": List(List(Value("int64"))),
    "ranks": List(Value("int64")),
    "scores": List(Value("float64")),
    "labels": List(Value("bool")),
    "reference_scores": List(Value("float64")),
    "weight": Value("float64"),
    **dict.fromkeys(_COUNTS, Value("int64")),
}


def _common_prefix_length(sequences: list[list[int]]) -> int:
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({ids[i] for ids in sequences}) > 1), shortest)


def tokenize_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Tokenize one row: a prompt and its K completions.

    As in TRL, prompt and completion are tokenized together, the completion starts at the first token that differs from
    the prompt's own tokens, and a plain-text completion ends with the EOS token. With K completions, the prompt is the
    part of its own tokens with which all K begin. Unlike in TRL, a completion ends once where the tokenizer adds EOS to
    every text.

    Args:
        row: `prompt` (text or messages), `completions` (K texts or message lists), optionally `tools` and
            `chat_template_kwargs`.
        tokenizer: its chat template is used for messages.

    Returns:
        `prompt_ids` [P], `completion_ids` (K lists), and `merged`: how many of the prompt's last tokens change when a
        completion follows; they are left out of `prompt_ids`.
    """
    prompt, completions = row["prompt"], row["completions"]
    tools, template_kwargs = row.get("tools"), row.get("chat_template_kwargs")
    prompt_ids = prompt_token_ids(prompt, tokenizer, tools, template_kwargs)
    if isinstance(prompt, str):
        eos = tokenizer.eos_token or ""
        wholes = [prompt + c + ("" if c.endswith(eos) else eos) for c in completions]
        # Without an EOS of its own, a completion ends with what the tokenizer puts after a text (SEP).
        whole_ids = [text_token_ids(w, tokenizer) if eos else list(tokenizer(text=w)["input_ids"]) for w in wholes]
    else:
        template: Any = tokenizer.apply_chat_template
        options = template_options(tools, template_kwargs)
        whole_ids = [template(fit_messages(prompt + c, tokenizer), **options)["input_ids"] for c in completions]
    start = _common_prefix_length([prompt_ids, *whole_ids])
    return {
        "prompt_ids": prompt_ids[:start],
        "completion_ids": [ids[start:] for ids in whole_ids],
        "merged": len(prompt_ids) - start,
    }


def _tokenize_or_refuse(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, Any]:
    """Tokenize a row; a `DataError` about it begins with `where`.

    Raises:
        DataError: the template or tokenizer raises, or the template leaves out text of the row.
    """
    try:
        tokens = tokenize_row(row, tokenizer)
        missing = left_out(row, tokens, tokenizer)
    except Exception as error:  # a chat template is a program and may fail in any way
        what = "tokenizer" if isinstance(row["prompt"], str) else "chat template"
        raise DataError(
            f"{where}: the {what} refuses it ({type(error).__name__}: {error}).", FaultReason.CANNOT_TOKENIZE
        ) from error
    if missing is not None:
        raise DataError(f"{where}: the chat template leaves out {missing}.", FaultReason.TEXT_LEFT_OUT)
    return tokens


def _usable(row: dict[str, Any], reads: Reads) -> bool:
    """Return whether some loss learns from a tokenized row."""
    if not row["prompt_ids"]:
        return False
    judged = row.get("scores") is not None or any(label is not None for label in row.get("labels") or ())
    if reads.single_responses and judged:
        return len(row["completion_ids"]) >= 1
    responses = zip(row["completion_ids"], row["ranks"], strict=True)
    # Two responses that became the same tokens have no gradient but for rounding, which Adam scales up to full steps.
    return any(a != b and (reads.ties or i != j) for (a, i), (b, j) in combinations(responses, 2))


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int | None,
    reads: Reads = Reads(),  # noqa: B008  it is frozen
    invalid_rows: InvalidRows = "error",
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Tokenize a dataset of ranked rows, truncate it, and drop the prompts that become unusable.

    A sequence longer than `max_length` tokens loses the end of its completion. A prompt is dropped if it fills
    `max_length`, or if fewer than two different non-empty responses remain (with a loss that reads single responses, if
    none remains): responses that are the same tokens, for example after truncation, compare nothing. The log counts
    both, and the prompts whose last tokens depend on what follows.

    Args:
        dataset: columns `prompt`, `completions`, `ranks`, optionally what else `to_ranked` returns.
        tokenizer: see `tokenize_row`.
        name: the dataset's name, for messages ("train").
        max_length: tokens of prompt and completion together; None without a limit.
        reads: what the losses read, which decides the prompts that stay usable.
        invalid_rows: what to do with rows that the chat template refuses, or whose text it leaves out: "error" lists
            them in one error, "drop" leaves them out.
        num_proc: processes for `Dataset.map`.

    Returns:
        Columns `prompt_ids`, `completion_ids`, `ranks`, and `row`, `scores`, `labels`, `reference_scores` and `weight`
        where given.

    Raises:
        DataError: no row is left, the rows are messages and the tokenizer has no chat template, or (with
            `invalid_rows="error"`) the template refuses rows or leaves out some of their text.
    """

    def process(row: dict[str, Any], index: int) -> dict[str, Any]:
        ids = _tokenize_or_refuse(row, tokenizer, f"{name} dataset, row {row.get('row', index)}")
        prompt_ids, completion_ids = ids["prompt_ids"], ids["completion_ids"]
        cut = 0
        if max_length is not None:
            room = max(0, max_length - len(prompt_ids))
            cut = sum(len(c) > room for c in completion_ids)
            completion_ids = [c[:room] for c in completion_ids]
        kept = [i for i, c in enumerate(completion_ids) if c]
        out: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "completion_ids": [completion_ids[i] for i in kept],
            "ranks": [row["ranks"][i] for i in kept],
            "_cut": cut,
            "_merged": ids["merged"],
        }
        for column in _PER_RESPONSE:
            if column in row:
                out[column] = None if row[column] is None else [row[column][i] for i in kept]
        return out | {column: row[column] for column in _PER_ROW if column in row}

    first = next(iter(dataset))
    if not isinstance(first["prompt"], str) and tokenizer.chat_template is None:
        raise DataError(
            f"{name} dataset: its prompts are messages, but the tokenizer has no chat template. Set "
            "tokenizer.chat_template, give text prompts, or use a model that was trained to chat."
        )
    columns: list[str] = dataset.column_names or list(first)
    features = Features(
        {
            column: feature
            for column, feature in _FEATURES.items()
            if column in columns or column not in (*_PER_RESPONSE, *_PER_ROW)
        }
    )
    tokens = map_rows(
        dataset,
        process,
        features,
        name=name,
        columns=columns,
        invalid_rows=invalid_rows,
        doing="Tokenizing",
        num_proc=num_proc,
    )
    keep = partial(_usable, reads=reads)
    if isinstance(tokens, IterableDataset):
        return tokens.filter(keep).remove_columns(_COUNTS)

    total = len(tokens)
    kept = tokens.filter(keep, num_proc=num_proc, desc=f"Checking {name} dataset")
    if len(kept) < total:
        least = "one non-empty response" if reads.single_responses else "two different non-empty responses"
        logger.warning(
            f"{name} dataset: dropped {total - len(kept)} of {total} prompts, because the prompt alone fills "
            f"max_length={max_length} or fewer than {least} are left."
        )
    if not len(kept):
        raise DataError(
            f"{name} dataset: none of its {total} prompts is usable with max_length={max_length}: prompts fill it, or "
            "responses are empty or the same tokens within it. Raise max_length."
        )
    if cut := sum(kept["_cut"]):
        responses = sum(map(len, kept["ranks"]))
        logger.warning(f"{name} dataset: cut {cut} of {responses} responses to max_length={max_length} tokens.")
    if merged := sum(tokens > 0 for tokens in kept["_merged"]):
        logger.warning(
            f"{name} dataset: in {merged} of {len(kept)} prompts the last tokens come out differently when a response "
            "follows. The response then starts before them, and the model is trained on another context than it sees "
            "when it generates. End prompts where a token ends, or use a chat template that renders the prompt the "
            "same with and without a response."
        )
    return kept.remove_columns(_COUNTS)
