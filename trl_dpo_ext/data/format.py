"""Bring a dataset of any accepted form to ranked rows (see `ranked_row.py`).

All rows are checked here, before anything expensive; each fault is reported with its row and column.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from .data_error import DataError, FaultReason
from .row_reading.column_form import ColumnForm
from .row_reading.form_selection import check_columns
from .row_reading.ranked_row import to_ranked

logger = logging.getLogger(__name__)

_PASSED_ON = ("tools", "chat_template_kwargs")
_SHOWN = 5


def format_dataset(
    dataset: Dataset | IterableDataset,
    *,
    name: str,
    invalid_rows: Literal["error", "drop"] = "error",
    reads_ties: bool = False,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with each row as `to_ranked` returns it, plus its number in `row`, and no other columns.

    `row` (int64) is the row's place in `dataset`. It stays with the row when others are dropped or shuffled, and
    messages name it. Messages, tools and template arguments are stored as JSON, so rows may have different keys.

    Args:
        dataset: has the columns of one of the forms in `trl_dpo_ext.data.forms`; others are ignored.
        name: the dataset's name, for messages ("train").
        invalid_rows: "error" raises one error that lists the bad rows (a streamed dataset: at the first bad row);
            "drop" leaves them out and logs how many and why.
        reads_ties: accept rows whose responses are all equally good.
        num_proc: processes for `Dataset.map`; a streamed dataset uses none.

    Raises:
        DataError: missing columns, images, bad rows with `invalid_rows="error"`, or no usable row at all.
    """
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows={invalid_rows!r}, expected 'error' or 'drop'.")
    dataset = dataset.with_format(None)  # rows as Python objects, whatever format the dataset was given
    streamed = isinstance(dataset, IterableDataset)
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns or (not streamed and len(dataset) == 0):
        raise DataError(f"{name} dataset: it has no rows.", FaultReason.NO_ROWS)
    form = check_columns(columns, name=name)

    conversational = _is_conversational(dataset, name, reads_ties, strict=streamed and invalid_rows == "error")
    features = _features(form, columns, conversational)
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


def _is_conversational(dataset: Dataset | IterableDataset, name: str, reads_ties: bool, strict: bool) -> bool:
    """Tell from the first good row whether the dataset holds messages; `strict` raises at a bad one before it."""
    for index, row in enumerate(dataset):
        try:
            return isinstance(to_ranked(row, index=index, name=name, reads_ties=reads_ties)["prompt"], list)
        except DataError:
            if strict:
                raise
    return False


def _features(form: ColumnForm, columns: Collection[str], conversational: bool) -> Features:
    text = List(Json()) if conversational else Value("string")
    features = {"prompt": text, "completions": List(text), "ranks": List(Value("int64"))}
    if form.scores_column in columns:
        features["scores"] = List(Value("float64"))
    features.update({column: Json() for column in _PASSED_ON if column in columns})
    return Features({**features, "row": Value("int64")})


def _convert(
    row: dict[str, Any], index: int, name: str, reads_ties: bool, conversational: bool, columns: list[str]
) -> dict[str, Any]:
    ranked = to_ranked(row, index=index, name=name, reads_ties=reads_ties, conversational=conversational)
    return {**{column: ranked.get(column) for column in columns}, "row": index}


def _convert_or_note(row: dict[str, Any], index: int, convert: partial[dict[str, Any]], columns: list[str]) -> Any:
    try:
        return {**convert(row, index), "problem": None, "reason": None}
    except DataError as error:
        return {**dict.fromkeys(columns), "problem": str(error), "reason": error.reason.label}


def _keep(row: dict[str, Any], name: str, dropped: Counter[str]) -> bool:
    """Tell whether a streamed row is good; the count is logged at 1, 10, 100, ... rows, because a stream may not end"""
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
