"""One row of any accepted form to the internal one: a prompt, K responses, their ranks (0 = best), scores where given.

Everything that can be wrong with a row is found here, and named with its column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import Any

from ..registry import did_you_mean

FORMS = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "completions", "ranks"),
    ("prompt", "completions", "scores"),
    ("prompt", "completions"),
)


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


def to_ranked(
    row: dict[str, Any], *, index: int, name: str, reads_ties: bool = False, conversational: bool | None = None
) -> dict[str, Any]:
    """Return one row of any accepted form as prompt, completions, ranks and whatever else of use it has.

    Args:
        row: columns of one of `FORMS`; prompt and responses are strings, or all are message lists.
        index: row number, for messages.
        name: the dataset's name, for messages ("train").
        reads_ties: accept a row whose responses are all equally good.
        conversational: what the rows before are, message lists (True) or strings (False); None takes either.

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
        ranked = _to_ranked({column: _without_none(value) for column, value in row.items()}, reads_ties)
        if conversational is not None:
            _check_kind(ranked["prompt"], conversational)
        return ranked
    except _Fault as fault:
        raise DataError(f"{name} dataset, row {index}, column {fault.column!r}: {fault.detail}", fault.reason) from None


def check_columns(columns: Iterable[str], *, name: str) -> None:
    """Check the columns of a dataset.

    Raises:
        DataError: they don't hold exactly one accepted form.
    """
    try:
        _check_columns(columns)
    except _Fault as fault:
        raise DataError(f"{name} dataset: {fault.detail}", fault.reason) from None


def _check_columns(columns: Iterable[str]) -> None:
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


def _check_kind(prompt: str | list[Any], conversational: bool) -> None:
    if isinstance(prompt, list) is not conversational:
        raise _Fault(
            "prompt",
            "mixed types",
            f"found {_show(prompt)}, but the rows before are {'message lists' if conversational else 'strings'}; "
            "use one of the two for all rows.",
        )


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
        raise _Fault(column, "length mismatch", f"found {len(values)} for {count} responses.")
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
