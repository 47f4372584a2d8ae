"""Turns every accepted data form into one: a prompt, K responses, their ranks (0 = best), and scores where given.

All a dataset's rows are checked here, before anything expensive; each fault is reported with its row and column.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from functools import partial
from numbers import Real
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from ..registry import did_you_mean

logger = logging.getLogger(__name__)

FORMS = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "completions", "ranks"),
    ("prompt", "completions", "scores"),
    ("prompt", "completions"),
)
_PASSED_ON = ("tools", "chat_template_kwargs")
_SHOWN = 5


class DataError(ValueError):
    """Data that can't be trained on. The message names dataset, row, column, what was found and what would be right.

    Attributes:
        reason: the kind of fault in a few words, to count by.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class _Fault(Exception):
    """What is wrong in one column, before dataset and row are known."""

    def __init__(self, column: str, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.column, self.reason, self.detail = column, reason, detail


def to_ranked(row: dict[str, Any], *, index: int, name: str, reads_ties: bool = False) -> dict[str, Any]:
    """Return one row of any accepted form as prompt, completions, ranks and whatever else of use it has.

    Args:
        row: columns of one of `FORMS`; prompt and responses are strings, or all are message lists.
        index: row number, for messages.
        name: the dataset's name, for messages ("train").
        reads_ties: accept a row whose responses are all equally good.

    Returns:
        `prompt`, `completions` (K >= 2, in the order given), `ranks` (K ints, dense, 0 = best, equal = tie); `scores`
        (K floats, higher is better), `tools` (list or None) and `chat_template_kwargs` (dict) where the row has them.
        Keys that are None, which Arrow adds to messages, are gone.

    Raises:
        DataError: the row can't be trained on.

    Example:
        >>> to_ranked({"prompt": "1+1=", "completions": ["3", "2", "two"], "scores": [-1, 5, 5]}, index=0, name="train")
        {'prompt': '1+1=', 'completions': ['3', '2', 'two'], 'ranks': [1, 0, 0], 'scores': [-1.0, 5.0, 5.0]}
    """
    try:
        _check_columns(row)
        return _to_ranked({column: _without_none(value) for column, value in row.items()}, reads_ties)
    except _Fault as fault:
        raise DataError(f"{name} dataset, row {index}, column {fault.column!r}: {fault.detail}", fault.reason) from None


def format_dataset(
    dataset: Dataset | IterableDataset,
    *,
    name: str,
    invalid_rows: Literal["error", "drop"] = "error",
    reads_ties: bool = False,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with every row as `to_ranked` gives it, and no other columns.

    Messages, tools and template arguments are stored as JSON, so that rows with different keys stay as they are.

    Args:
        dataset: columns of one of `FORMS`; others are ignored.
        name: the dataset's name, for messages ("train").
        invalid_rows: "error" raises one error about all bad rows (a streamed dataset: at the first bad row); "drop"
            leaves them out and logs how many and why.
        reads_ties: accept rows whose responses are all equally good.
        num_proc: processes to map with; a streamed dataset has none.

    Raises:
        DataError: missing columns, images, bad rows with `invalid_rows="error"`, or no usable row at all.
    """
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows={invalid_rows!r}, expected 'error' or 'drop'.")
    dataset = dataset.with_format(None)  # rows as Python objects, whatever format the dataset was given
    streamed = isinstance(dataset, IterableDataset)
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns or (not streamed and len(dataset) == 0):
        raise DataError(f"{name} dataset: it has no rows.", "no rows")
    try:
        _check_columns(columns)
    except _Fault as fault:
        raise DataError(f"{name} dataset: {fault.detail}", fault.reason) from None

    conversational = _is_conversational(dataset, name, reads_ties, strict=streamed and invalid_rows == "error")
    features = _features(columns, conversational)
    convert = partial(_convert, name=name, reads_ties=reads_ties, conversational=conversational, columns=list(features))
    map_kwargs = {"with_indices": True, "remove_columns": columns}
    if streamed and invalid_rows == "error":
        return dataset.map(convert, features=features, **map_kwargs)

    features = Features({**features, "problem": Value("string"), "reason": Value("string")})
    convert_or_note = partial(_convert_or_note, convert=convert, columns=list(features))
    if streamed:
        mapped = dataset.map(convert_or_note, features=features, **map_kwargs)
        return mapped.filter(partial(_keep, name=name, dropped=Counter())).remove_columns(["problem", "reason"])

    mapped = dataset.map(
        convert_or_note, features=features, num_proc=num_proc, desc=f"Formatting {name} dataset", **map_kwargs
    )
    problems, reasons = mapped["problem"][:], mapped["reason"][:]
    mapped = mapped.remove_columns(["problem", "reason"])
    kept = [row for row, problem in enumerate(problems) if problem is None]
    if len(kept) == len(problems):
        return mapped
    counts = Counter(reason for reason in reasons if reason is not None)
    if invalid_rows == "error" or not kept:
        raise DataError(_all_problems(name, [p for p in problems if p is not None], len(problems), counts))
    logger.warning(
        "%s dataset: dropped %d of %d rows: %s.", name, len(problems) - len(kept), len(problems), _summary(counts)
    )
    return mapped.select(kept)


def _check_columns(columns: Iterable[str]) -> None:
    """Raise unless the columns hold exactly one accepted form."""
    found = list(columns)
    for column in ("image", "images"):
        if column in found:
            raise _Fault(
                column,
                "images",
                f"images aren't supported; train on {column!r} with TRL's DPOTrainer, or remove the column.",
            )
    if "completions" in found and {"chosen", "rejected"} & set(found):
        raise _Fault(
            "completions",
            "two forms",
            f"found both 'completions' and {' and '.join(repr(c) for c in found if c in ('chosen', 'rejected'))}; "
            "remove one form.",
        )
    if not any(set(form) <= set(found) for form in FORMS):
        form = min(FORMS, key=lambda form: (len(set(form) - set(found)), -len(form)))
        missing = [column for column in form if column not in found]
        hint = "".join(did_you_mean(column, found) for column in missing)
        raise _Fault(
            missing[0],
            "missing columns",
            f"found the columns {', '.join(found)}. The nearest accepted form is {' + '.join(form)}; missing: "
            f"{', '.join(missing)}.{hint} All forms: {'; '.join(' + '.join(form) for form in FORMS)}.",
        )
    if "completions" in found and not {"ranks", "scores"} & set(found):
        # Without ranks or scores the order counts, so a misspelt column would be passed over and the order believed.
        for right in ("ranks", "scores"):
            for wrong in get_close_matches(right, found, n=1, cutoff=0.75):
                raise _Fault(
                    wrong,
                    "missing columns",
                    f"found {wrong!r}, but neither 'ranks' nor 'scores'. Rename it to {right!r}, or remove it if the "
                    "completions are in order, best first.",
                )


def _to_ranked(row: dict[str, Any], reads_ties: bool) -> dict[str, Any]:
    if "completions" in row:
        prompt, responses = row["prompt"], row["completions"]
        if not isinstance(responses, list):
            raise _Fault("completions", "wrong type", f"found {_show(responses)}, expected a list of responses.")
        places = [("completions", f"response {number}") for number in range(len(responses))]
    else:
        prompt, responses = _split_pair(row)
        places = [("chosen", "the response"), ("rejected", "the response")]
    if len(responses) < 2:
        raise _Fault("completions", "fewer than two responses", f"found {len(responses)}, expected 2 or more.")
    _check_prompt(prompt)
    for (column, place), response in zip(places, responses, strict=True):
        _check_response(column, place, response, prompt)

    scores = _numbers(row, "scores", len(responses)) if "completions" in row and "scores" in row else None
    if "completions" in row and "ranks" in row:
        ranks = _dense(_check_ranks(_numbers(row, "ranks", len(responses))))
    elif scores is not None:
        ranks = _dense([-score for score in scores])
    else:
        ranks = list(range(len(responses)))
    _check_ranking(responses, ranks, scores, places[-1][0], reads_ties)

    ranked = {"prompt": prompt, "completions": responses, "ranks": ranks}
    if scores is not None:
        ranked["scores"] = [float(score) for score in scores]
    if "tools" in row:
        ranked["tools"] = _tools(row["tools"])
    if "chat_template_kwargs" in row:
        kwargs = row["chat_template_kwargs"] or {}
        if not isinstance(kwargs, dict):
            raise _Fault("chat_template_kwargs", "wrong type", f"found {_show(kwargs)}, expected a dict.")
        ranked["chat_template_kwargs"] = kwargs
    return ranked


def _split_pair(row: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return prompt and [chosen, rejected], the prompt taken from both where it is implicit."""
    from trl import extract_prompt  # imports transformers, which takes seconds

    for column in ("chosen", "rejected"):
        if not isinstance(row[column], (str, list)):
            raise _Fault(column, "wrong type", f"found {_show(row[column])}, expected a string or a message list.")
        if not row[column]:
            raise _Fault(column, "empty response", f"the response is {row[column]!r}, expected text.")
    # As in TRL: a plain prompt beside whole conversations only repeats their first turn.
    if "prompt" in row and not (isinstance(row["prompt"], str) and isinstance(row["chosen"], list)):
        return row["prompt"], [row["chosen"], row["rejected"]]
    if type(row["chosen"]) is not type(row["rejected"]):
        raise _Fault("rejected", "mixed types", "chosen and rejected must both be strings, or both message lists.")
    pair = extract_prompt({"chosen": row["chosen"], "rejected": row["rejected"]})
    if not pair["prompt"]:
        raise _Fault(
            "chosen",
            "empty prompt",
            "chosen and rejected have no beginning in common to serve as the prompt; add a column 'prompt' of the same "
            "type as theirs.",
        )
    return pair["prompt"], [pair["chosen"], pair["rejected"]]


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, (str, list)):
        raise _Fault("prompt", "wrong type", f"found {_show(prompt)}, expected a string or a message list.")
    if isinstance(prompt, list):
        _check_messages("prompt", "the prompt", prompt)
    if not (prompt.strip() if isinstance(prompt, str) else any(_has_content(message) for message in prompt)):
        raise _Fault("prompt", "empty prompt", f"the prompt is {_show(prompt)}, expected text.")


def _check_response(column: str, place: str, response: Any, prompt: str | list[Any]) -> None:
    if not isinstance(response, (str, list)):
        raise _Fault(column, "wrong type", f"{place} is {_show(response)}, expected a string or a message list.")
    if type(response) is not type(prompt):
        kinds = {str: "a string", list: "a message list"}
        raise _Fault(
            column,
            "mixed types",
            f"{place} is {kinds[type(response)]}, but the prompt is {kinds[type(prompt)]}; use one of the two for all.",
        )
    if not (response.strip() if isinstance(response, str) else response):
        raise _Fault(column, "empty response", f"{place} is {response!r}, expected text.")
    if isinstance(response, list):
        _check_messages(column, place, response)
        if response[0]["role"] != "assistant":
            raise _Fault(
                column,
                "wrong role",
                f"{place} begins with the role {response[0]['role']!r}, expected 'assistant': a response doesn't "
                "repeat the prompt.",
            )
        for message in response:
            if message["role"] == "assistant" and not _has_content(message):
                raise _Fault(column, "empty response", f"{place} has an assistant message without content.")


def _check_messages(column: str, place: str, messages: list[Any]) -> None:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _Fault(
                column, "wrong type", f"{place} holds {_show(message)}, expected a message with 'role' and 'content'."
            )
        content = message.get("content", "")
        if isinstance(content, list):
            for block in content:
                if not isinstance(block, dict) or block.get("type") != "text":
                    raise _Fault(
                        column,
                        "images",
                        f"{place} holds the content block {_show(block)}, but only text is supported; use TRL's "
                        "DPOTrainer for images.",
                    )
        elif not isinstance(content, str):
            raise _Fault(column, "wrong type", f"{place} holds the content {_show(content)}, expected text.")


def _has_content(message: dict[str, Any]) -> bool:
    content = message.get("content", "")
    text = content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
    return bool(text.strip() or message.get("tool_calls"))


def _numbers(row: dict[str, Any], column: str, count: int) -> list[Any]:
    """Return the column's K finite numbers."""
    values = row[column]
    if not isinstance(values, list):
        raise _Fault(column, "wrong type", f"found {_show(values)}, expected a list of {count} numbers.")
    if len(values) != count:
        raise _Fault(
            column, f"{column} and completions differ in length", f"found {len(values)} for {count} responses."
        )
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise _Fault(column, "wrong type", f"number {number} is {_show(value)}, expected a number.")
        if not math.isfinite(value):
            raise _Fault(column, "NaN or infinity", f"number {number} is {value}, expected a finite number.")
    return values


def _check_ranks(ranks: list[Any]) -> list[int]:
    for number, rank in enumerate(ranks):
        if rank != int(rank):
            raise _Fault(
                "ranks", "rank not an integer", f"number {number} is {rank}, expected an integer; ties share a rank."
            )
        if rank < 0:
            raise _Fault("ranks", "negative rank", f"number {number} is {rank}, expected 0 (best) or more.")
    return [int(rank) for rank in ranks]


def _check_ranking(
    responses: list[Any], ranks: list[int], scores: list[Any] | None, column: str, reads_ties: bool
) -> None:
    if max(ranks) == 0 and not reads_ties:
        where = "ranks" if scores is None else "scores"
        raise _Fault(
            where,
            "all tied",
            f"all {len(ranks)} responses are equally good; only a loss that reads ties learns from it.",
        )
    for worse, rank in enumerate(ranks):
        for better in range(len(ranks)):
            if ranks[better] >= rank:
                continue
            if responses[better] == responses[worse]:
                raise _Fault(
                    column,
                    "identical responses",
                    f"responses {better} and {worse} are the same ({_show(responses[worse])}), but not equally good.",
                )
            if scores is not None and scores[better] < scores[worse]:
                raise _Fault(
                    "ranks",
                    "ranks and scores disagree",
                    f"response {better} is ranked above response {worse}, but its score is lower ({scores[better]} < "
                    f"{scores[worse]}). Rank 0 is the best, a higher score is better; correct or remove one column.",
                )


def _dense(values: list[Any]) -> list[int]:
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]


def _tools(tools: Any) -> list[Any] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise _Fault("tools", "wrong type", f"found {_show(tools)}, which isn't JSON ({error}).") from None
    if not isinstance(tools, list | None):
        raise _Fault("tools", "wrong type", f"found {_show(tools)}, expected a list of tool schemas.")
    return tools


def _without_none(value: Any) -> Any:
    """Return the value without the None that Arrow adds for keys that other rows have."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_conversational(dataset: Dataset | IterableDataset, name: str, reads_ties: bool, strict: bool) -> bool:
    """Tell from the first good row whether the dataset holds messages; `strict` raises at a bad one before it."""
    for index, row in enumerate(dataset):
        try:
            return isinstance(to_ranked(row, index=index, name=name, reads_ties=reads_ties)["prompt"], list)
        except DataError:
            if strict:
                raise
    return False


def _features(columns: Collection[str], conversational: bool) -> Features:
    text = List(Json()) if conversational else Value("string")
    features = {"prompt": text, "completions": List(text), "ranks": List(Value("int64"))}
    if "completions" in columns and "scores" in columns:
        features["scores"] = List(Value("float64"))
    features.update({column: Json() for column in _PASSED_ON if column in columns})
    return Features(features)


def _convert(
    row: dict[str, Any], index: int, name: str, reads_ties: bool, conversational: bool, columns: list[str]
) -> dict[str, Any]:
    ranked = to_ranked(row, index=index, name=name, reads_ties=reads_ties)
    if isinstance(ranked["prompt"], list) is not conversational:
        raise DataError(
            f"{name} dataset, row {index}, column 'prompt': found {_show(ranked['prompt'])}, but the rows before are "
            f"{'message lists' if conversational else 'strings'}; use one of the two for all rows.",
            "mixed types",
        )
    return {column: ranked.get(column) for column in columns}


def _convert_or_note(row: dict[str, Any], index: int, convert: partial[dict[str, Any]], columns: list[str]) -> Any:
    try:
        return {**convert(row, index), "problem": None, "reason": None}
    except DataError as error:
        return {**dict.fromkeys(columns), "problem": str(error), "reason": error.reason}


def _keep(row: dict[str, Any], name: str, dropped: Counter[str]) -> bool:
    """Tell whether a streamed row is good; a stream has no end to log at, so the count is logged at 1, 10, 100, ..."""
    if row["problem"] is None:
        return True
    dropped[row["reason"]] += 1
    total = dropped.total()
    if total == 10 ** (len(str(total)) - 1):
        logger.warning("%s dataset: dropped %d rows so far: %s.", name, total, _summary(dropped))
    return False


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())


def _all_problems(name: str, problems: list[str], total: int, counts: Counter[str]) -> str:
    lines = [f"{name} dataset: {len(problems)} of {total} rows can't be trained on: {_summary(counts)}."]
    lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more.")
    return "\n".join([*lines, 'Correct the rows, or set invalid_rows="drop" to leave them out.'])
