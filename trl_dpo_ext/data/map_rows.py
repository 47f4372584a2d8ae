"""Map the rows of a dataset with a function that may refuse some: one error about all of them, or without them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Value

from .data_error import DataError

logger = logging.getLogger(__name__)

InvalidRows = Literal["error", "drop"]
_SHOWN = 5
_FAULT_COLUMNS = ["problem", "reason"]


def map_rows(
    dataset: Dataset | IterableDataset,
    convert: Callable[[dict[str, Any], int], dict[str, Any]],
    features: Features,
    *,
    name: str,
    columns: list[str],
    invalid_rows: InvalidRows,
    doing: str,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Return the dataset with each row converted, and no other columns.

    Args:
        dataset: may stream.
        convert: from a row and its place to the new row; raises `DataError` for a row that can't be trained on.
        features: of the new rows.
        name: the dataset's name, for messages ("train").
        columns: the dataset's columns.
        invalid_rows: "error" raises one error that lists the bad rows (a streamed dataset: at the first bad row);
            "drop" leaves them out and logs how many and why.
        doing: for the progress bar ("Formatting").
        num_proc: processes for `Dataset.map`; a streamed dataset uses none.

    Raises:
        ValueError: `invalid_rows` is something else.
        DataError: bad rows with `invalid_rows="error"`, or no good row at all.
    """
    if invalid_rows not in ("error", "drop"):
        raise ValueError(f"invalid_rows={invalid_rows!r}, expected 'error' or 'drop'.")
    options: dict[str, Any] = {"with_indices": True, "remove_columns": columns}
    streamed = isinstance(dataset, IterableDataset)
    if streamed and invalid_rows == "error":
        return dataset.map(convert, features=features, **options)

    noted = Features({**features, **dict.fromkeys(_FAULT_COLUMNS, Value("string"))})
    convert_or_note = partial(_convert_or_note, convert=convert, columns=list(noted))
    if streamed:
        mapped = dataset.map(convert_or_note, features=noted, **options)
        return mapped.filter(partial(_keep, name=name, dropped=Counter())).remove_columns(_FAULT_COLUMNS)

    mapped = dataset.map(convert_or_note, features=noted, num_proc=num_proc, desc=f"{doing} {name} dataset", **options)
    problems, reasons = mapped["problem"][:], mapped["reason"][:]
    mapped = mapped.remove_columns(_FAULT_COLUMNS)
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


def _convert_or_note(
    row: dict[str, Any], index: int, convert: Callable[[dict[str, Any], int], dict[str, Any]], columns: list[str]
) -> dict[str, Any]:
    try:
        return {**convert(row, index), **dict.fromkeys(_FAULT_COLUMNS)}
    except DataError as error:
        return {**dict.fromkeys(columns), "problem": str(error), "reason": error.reason.label}


def _keep(row: dict[str, Any], name: str, dropped: Counter[str]) -> bool:
    """Tell whether a streamed row is good; the count is logged at 1, 10, 100, ... rows, for a stream may not end."""
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
