"""One row as it is trained: the decoded tokens of prompt and responses, with what is scored marked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from ..convert import convert_row
from ..converter_registry import get_converter
from ..format import reading_of
from ..mixture import separate_forms
from ..padded_columns import padded_columns
from ..reads import EVERY_ROW
from ..row_reading.ranked_row import to_ranked
from ..tokenize import tokenize_row

OPEN, CLOSE = "\u25b6", "\u25c0"
"""What stands around the tokens whose log-probs the losses read."""


def row_as_trained(
    dataset: Dataset,
    number: int,
    tokenizer: Any,
    *,
    name: str,
    converter: str | None = None,
    max_length: int | None = None,
) -> list[str]:
    """Return the lines that show one row of a dataset.

    Args:
        dataset: rows of any accepted form.
        number: of the row.
        tokenizer: the model's.
        name: the dataset's name, for messages ("train").
        converter: the converter that brings rows into an accepted form.
        max_length: tokens of prompt and completion together, as in training.

    Raises:
        DataError: the row can't be trained on.
    """
    dataset = dataset.with_format(None)
    if converter is None:
        dataset = separate_forms(dataset, name=name)
        reading, row = reading_of(dataset, name), dataset[number]
        read_as, padded = reading.title, padded_columns(dataset)
    else:
        found = get_converter(converter)
        reading, row = None, convert_row(dataset[number], number, found, name)
        read_as, padded = f"{found.name} (a converter)", None
    ranked = to_ranked(row, index=number, name=name, reads=EVERY_ROW, reading=reading, padded=padded)
    return [f"Row {number} of {name}, read as {read_as}:", *_lines(ranked, tokenizer, max_length)]


def _lines(ranked: dict[str, Any], tokenizer: Any, max_length: int | None) -> Iterator[str]:
    tokens = tokenize_row(ranked, tokenizer)
    prompt = tokens["prompt_ids"]
    yield f"prompt, {len(prompt)} tokens, not scored:"
    yield tokenizer.decode(prompt)
    room = None if max_length is None else max(0, max_length - len(prompt))
    for number, ids in enumerate(tokens["completion_ids"]):
        kept = ids[:room]
        cut = f" ({len(ids) - len(kept)} more are cut off)" if len(kept) < len(ids) else ""
        facts = [f"rank {ranked['ranks'][number]}"]
        if "scores" in ranked:
            facts.append(f"score {ranked['scores'][number]:g}")
        if "labels" in ranked:
            facts.append({True: "desirable", False: "undesirable", None: "no label"}[ranked["labels"][number]])
        yield f"response {number}, {', '.join(facts)}, {len(kept)} tokens, scored{cut}:"
        yield f"{OPEN}{tokenizer.decode(kept)}{CLOSE}"
