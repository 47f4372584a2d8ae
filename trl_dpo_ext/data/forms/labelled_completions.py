"""One or more responses a prompt, each desirable or not: prompt, completions, labels; ranks and scores where given."""

from __future__ import annotations

from ..data_error import ColumnFault, FaultReason
from ..row_reading.column_form import ColumnForm, Order, Row
from ..row_reading.response_list import ranks_by_score, read_completions, read_list, read_ranks, read_scores
from ..row_reading.values import read_label


def _read_order(row: Row, count: int) -> Order:
    """Return the labels, and the order that ranks, else scores, else the labels give: desirable above undesirable."""
    values = read_list(row, "labels", count, of="labels")
    # Where the ranks are there too, a label may be unknown, as in the internal form.
    labels = [
        None if value is None and "ranks" in row else read_label(value, "labels", f"label {place} ")
        for place, value in enumerate(values)
    ]
    # In a mixed dataset, rows of other forms have no scores.
    scores = read_scores(row, count) if "scores" in row and (row["scores"] is not None or "ranks" not in row) else None
    if "ranks" in row:
        ranks = read_ranks(row, count)
    elif scores is not None:
        ranks = ranks_by_score(scores)
    elif len(set(labels)) == 1:
        ranks = [0] * count
    else:
        ranks = [0 if label else 1 for label in labels]
    _check_labels(labels, ranks)
    return Order(ranks, scores, labels)


def _check_labels(labels: list[bool | None], ranks: list[int]) -> None:
    """Raise a `ColumnFault` if an undesirable response is better than a desirable one."""
    desirable = [place for place, label in enumerate(labels) if label is True]
    undesirable = [place for place, label in enumerate(labels) if label is False]
    for good in desirable:
        for bad in undesirable:
            if ranks[bad] < ranks[good]:
                raise ColumnFault(
                    "labels",
                    FaultReason.LABELS_AND_ORDER_DISAGREE,
                    f"response {bad} is undesirable, but its rank or score is better than that of response {good}, "
                    "which is desirable. Correct or remove one column.",
                )


FORM = ColumnForm(
    name="responses with labels",
    columns=("prompt", "completions", "labels"),
    optional_columns=("ranks", "scores"),
    response_columns=("completions",),
    scores_columns=("scores",),
    labels_column="labels",
    read_texts=read_completions,
    read_order=_read_order,
)
