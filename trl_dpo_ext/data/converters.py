"""Named converters from the schemas of public datasets to the columns that are trained on.

A recipe names one with `dataset_converter: nectar`; `rows.py` then checks what came out, as it does any other data.
Each docstring says which columns and types the converter was written for, and where they were looked up; the public
files themselves were not at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from datasets import Dataset, IterableDataset

from ..registry import Registry, did_you_mean
from .rows import DataError

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Converter:
    """What turns one row of a public dataset into a row of an accepted form.

    Attributes:
        name: as recipes name it.
        columns: what it reads.
        dataset: the Hub id it was written for.
        fn: from a row to a row; raises `ValueError` with a sentence about a row that it can't read.
    """

    name: str
    columns: tuple[str, ...]
    dataset: str
    fn: Callable[[Row], Row]


_registry: Registry[Converter] = Registry("dataset converter")


def register_converter(
    name: str, *, columns: Sequence[str], dataset: str = ""
) -> Callable[[Callable[[Row], Row]], Callable[[Row], Row]]:
    """Register a function from a row to a row of an accepted form (see `rows.FORMS`).

    Args:
        name: as recipes name it.
        columns: what it reads; a dataset without them is refused before any row is read.
        dataset: the Hub id it is for.

    Raises:
        NameCollisionError, RegistryError: the name is taken, or isn't an identifier.

    Example:
        ```python
        @register_converter("stars", columns=["question", "answers", "stars"])
        def stars(row):
            return {"prompt": row["question"], "completions": row["answers"], "scores": row["stars"]}
        ```
    """

    def add(fn: Callable[[Row], Row]) -> Callable[[Row], Row]:
        _registry.register(name, Converter(name, tuple(columns), dataset, fn))
        return fn

    return add


def get_converter(name: str) -> Converter:
    """Return the converter called `name`.

    Raises:
        UnknownNameError: there is none; the message has the nearest names.
    """
    return _registry.get(name)


def list_converters() -> list[Converter]:
    """Return all converters by name."""
    return list(_registry)


def convert_dataset(
    dataset: Dataset | IterableDataset,
    converter: str,
    *,
    name: str,
    invalid_rows: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with each row converted, and no other columns.

    Args:
        dataset: rows as the public dataset has them; may stream.
        converter: the converter's name.
        name: the dataset's name, for messages ("train").
        invalid_rows: "error" stops at the first row that can't be read; "drop" leaves such rows out, and logs how many
            (later messages then number the rows that are left).
        num_proc: processes to map with; a streamed dataset has none.

    Raises:
        UnknownNameError: no such converter.
        DataError: a column that the converter reads is missing, or a row can't be read.
    """
    found = get_converter(converter)
    columns = dataset.column_names or list(next(iter(dataset), {}))
    check_converter(found, columns, name)
    convert = partial(convert_row, converter=found, name=name)
    if invalid_rows == "drop":
        # Rows are read twice, once to look and once to convert, so that what comes out has columns of one type.
        dataset = dataset.filter(partial(_readable, convert=convert, dropped=[]), with_indices=True)
    options: dict[str, Any] = {} if isinstance(dataset, IterableDataset) else {"num_proc": num_proc}
    return dataset.map(convert, with_indices=True, remove_columns=columns, **options)


def check_converter(converter: Converter, columns: list[str], name: str) -> None:
    """Check that a dataset has the columns that a converter reads.

    Raises:
        DataError: one is missing.
    """
    missing = [column for column in converter.columns if column not in columns]
    if not missing:
        return
    fitting = [c.name for c in list_converters() if set(c.columns) <= set(columns)]
    hint = f" These converters read what is there: {', '.join(fitting)}." if fitting else ""
    raise DataError(
        f"{name} dataset: the converter {converter.name!r} reads the columns {', '.join(converter.columns)}; found "
        f"{', '.join(columns) or 'none'}, missing: {', '.join(missing)}."
        f"{''.join(did_you_mean(column, columns) for column in missing)}{hint}",
        "missing columns",
    )


def convert_row(row: Row, index: int, converter: Converter, name: str) -> Row:
    """Return row number `index` of the dataset called `name`, converted.

    Raises:
        DataError: the converter can't read it.
    """
    try:
        return converter.fn({column: row[column] for column in converter.columns})
    except Exception as error:  # a converter may fail in any way at a row of another shape
        # A KeyError's text is nothing but the key.
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{name} dataset, row {index}: the converter {converter.name!r} can't read this row: {said}. "
            'Correct it, or set invalid_rows="drop" to leave such rows out.',
            "unreadable row",
        ) from error


def _readable(row: Row, index: int, convert: Callable[[Row, int], Row], dropped: list[int]) -> bool:
    """Tell whether a row can be read; a stream has no end to log at, so the count is logged at 1, 10, 100, ..."""
    try:
        convert(row, index)
    except DataError as error:
        dropped.append(index)
        if (count := len(dropped)) == 10 ** (len(str(count)) - 1):
            logger.warning("Left out %d rows so far, the last one: %s", count, error)
        return False
    return True


# Transcripts


_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_ROLES = {_HUMAN: "user", _ASSISTANT: "assistant"}


def parse_transcript(text: str) -> list[dict[str, str]]:
    r"""Return the messages of a transcript that begins with a human turn.

    Raises:
        ValueError: it begins otherwise.

    Example:
        >>> parse_transcript("\n\nHuman: Hi!\n\nAssistant: Hello.\nHow are you?")
        [{'role': 'user', 'content': 'Hi!'}, {'role': 'assistant', 'content': 'Hello.\nHow are you?'}]
    """
    if not text.startswith(_HUMAN):
        raise ValueError(f"a transcript begins with {_HUMAN!r}, this one with {text[:30]!r}")
    messages = []
    while text:
        mark = _HUMAN if text.startswith(_HUMAN) else _ASSISTANT
        ends = [end for end in (text.find(other, len(mark)) for other in _ROLES) if end >= 0]
        end = min(ends, default=len(text))
        messages.append({"role": _ROLES[mark], "content": text[len(mark) : end].strip()})
        text = text[end:]
    return messages


def _split_transcripts(row: Row) -> tuple[str, str, str]:
    """Return the prompt, up to and with the last assistant mark, and what chosen and rejected have behind it."""
    chosen, rejected = row["chosen"], row["rejected"]
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str) or _ASSISTANT not in text:
            raise ValueError(f"{column} is no transcript with {_ASSISTANT!r}: {str(text)[:60]!r}")
    end = chosen.rfind(_ASSISTANT) + len(_ASSISTANT)
    if not rejected.startswith(chosen[:end]) or _ASSISTANT in rejected[end:]:
        raise ValueError("chosen and rejected differ before their last answer, so they answer different prompts")
    if _HUMAN in chosen[end:] or _HUMAN in rejected[end:]:
        raise ValueError("a human turn follows the last answer")
    return chosen[:end], chosen[end:], rejected[end:]


@register_converter("hh_rlhf", columns=["chosen", "rejected"], dataset="Anthropic/hh-rlhf")
def hh_rlhf(row: Row) -> Row:
    """Anthropic/hh-rlhf as conversations, for models with a chat template.

    Written for: `chosen` and `rejected`, each a transcript "\\n\\nHuman: ... \\n\\nAssistant: ..." that ends with an
    answer, equal up to it. Looked up in TRL's script for trl-lib/hh-rlhf-helpful-base and the DPO authors' loader. Rows
    whose transcripts part earlier are refused: their answers belong to different prompts.
    """
    prompt, chosen, rejected = _split_transcripts(row)
    return {
        "prompt": parse_transcript(prompt)[:-1],
        "chosen": _answer(chosen.strip()),
        "rejected": _answer(rejected.strip()),
    }


@register_converter("hh_rlhf_text", columns=["chosen", "rejected"], dataset="Anthropic/hh-rlhf")
def hh_rlhf_text(row: Row) -> Row:
    """Anthropic/hh-rlhf as plain text, for models without a chat template; the split of the DPO paper's own loader.

    The prompt ends with "\\n\\nAssistant:", an answer begins with its space. The columns are those of `hh_rlhf`. Unlike
    in that loader, an answer isn't cut at the prompt's length where the transcripts part earlier: the row is refused.
    """
    prompt, chosen, rejected = _split_transcripts(row)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@register_converter("nectar", columns=["prompt", "answers"], dataset="berkeley-nest/Nectar")
def nectar(row: Row) -> Row:
    """berkeley-nest/Nectar: seven answers to a conversation, ranked by GPT-4.

    Written for: `prompt`, a transcript that ends with "\\n\\nAssistant: "; `answers`, a list of {answer, model, rank}
    with 1 for the best. Looked up in the dataset's card, which has the rank as int; loaders of others compare it with
    1.0, so any whole number is taken.
    """
    messages = parse_transcript(row["prompt"])
    if messages[-1] != {"role": "assistant", "content": ""}:
        raise ValueError(f"a prompt ends with {_ASSISTANT!r}, this one with {row['prompt'][-30:]!r}")
    answers = row["answers"]
    return {
        "prompt": messages[:-1],
        "completions": [_answer(answer["answer"].strip()) for answer in answers],
        "ranks": [_zero_based(answer["rank"]) for answer in answers],
    }


# Summaries


@register_converter("tldr", columns=["info", "summaries", "choice"], dataset="openai/summarize_from_feedback")
def tldr(row: Row) -> Row:
    """openai/summarize_from_feedback, config `comparisons`: two summaries of a Reddit post (or a news article).

    Written for: `info` {id, post, title, subreddit, site, article}, where a news article has no `post`; `summaries`,
    two of {text, policy, note}; `choice`, the index of the better one. Looked up in the card of a copy that keeps all
    columns (vwxyzjn/tldr-preference-trl-style). The prompt is that of TRL's script for trl-lib/tldr-preference, which
    needs no converter and, unlike this one, is stored in a form that `datasets` 4 can load.
    """
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    if len(summaries) != 2 or choice not in (0, 1):
        raise ValueError(f"expected two summaries and a choice of 0 or 1, found {len(summaries)} and {choice!r}")
    if info["post"] is not None:
        post = info["post"].replace("\n\n", "\n")
        prompt = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {post}\n\nTL;DR:"
    elif info["article"] is not None:
        article = info["article"].replace("\n\n", "\n")
        prompt = f"TITLE: {info['title']}\n\n{article}\n\nTL;DR:"
    else:
        raise ValueError("info has neither a post nor an article")
    better, worse = (" " + summaries[index]["text"].strip() for index in (choice, 1 - choice))
    return {"prompt": prompt, "chosen": better, "rejected": worse}


# Scored completions


def _ultrafeedback(row: Row, score: str) -> Row:
    completions = row["completions"]
    for number, completion in enumerate(completions):
        if completion[score] is None:
            raise ValueError(f"completion {number} has no {score}")
    return {
        "prompt": [{"role": "user", "content": row["instruction"]}],
        "completions": [_answer(completion["response"]) for completion in completions],
        "scores": [float(completion[score]) for completion in completions],
    }


@register_converter("ultrafeedback", columns=["instruction", "completions"], dataset="openbmb/UltraFeedback")
def ultrafeedback(row: Row) -> Row:
    """openbmb/UltraFeedback: four completions, scored 1 to 10 by GPT-4 as a whole.

    Written for: `instruction`, text; `completions`, a list of {response, model, overall_score, fine-grained_score,
    annotations, critique, ...}. Looked up in public loaders of it and TRL's script; the project's own page says that
    wrong scores of 10 were corrected in December 2023. Some rows have fewer than four completions, or only ties:
    `invalid_rows: drop` leaves out those that can't be ranked.
    """
    return _ultrafeedback(row, "overall_score")


@register_converter("ultrafeedback_mean", columns=["instruction", "completions"], dataset="openbmb/UltraFeedback")
def ultrafeedback_mean(row: Row) -> Row:
    """openbmb/UltraFeedback by `fine-grained_score`, the mean over the four aspects, 1 to 5; see `ultrafeedback`.

    Loaders of others find NaN here; such rows are refused, or left out with `invalid_rows: drop`.
    """
    return _ultrafeedback(row, "fine-grained_score")


@register_converter(
    "ultrafeedback_binarized",
    columns=["chosen", "rejected", "score_chosen", "score_rejected"],
    dataset="HuggingFaceH4/ultrafeedback_binarized",
)
def ultrafeedback_binarized(row: Row) -> Row:
    """HuggingFaceH4/ultrafeedback_binarized and trl-lib/ultrafeedback_binarized, with their scores.

    Written for: `chosen` and `rejected`, whole conversations that differ in the last message; `score_chosen` and
    `score_rejected`, floats. Looked up in the dataset's card; the splits are called train_prefs and test_prefs (train
    and test in trl-lib's). Without a converter both work too, by which response was chosen; this one keeps the scores,
    for losses that read them, and takes equal scores for a tie.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected differ before their last message, so they answer different prompts")
    return {
        "prompt": chosen[:-1],
        "completions": [chosen[-1:], rejected[-1:]],
        "scores": [float(row["score_chosen"]), float(row["score_rejected"])],
    }


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _zero_based(rank: float) -> int:
    if rank != int(rank) or rank < 1:
        raise ValueError(f"a rank is 1 or more, found {rank}")
    return int(rank) - 1
