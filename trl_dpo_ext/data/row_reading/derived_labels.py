"""Labels for rows that have an order or scores only."""

from __future__ import annotations

from ..reads import Reads
from .column_form import Order


def derive_labels(order: Order, reads: Reads) -> list[bool | None]:
    """Return whether each response is desirable, as its row's order or scores say.

    As in HALOs, the best responses are desirable and the others not. With `desirable_above` and scores, a score greater
    than that is desirable. Responses that are all equally good say nothing.

    Args:
        order: of K responses.
        reads: `derive_labels` and `desirable_above`.

    Returns:
        [K], None = unknown.

    Example:
        >>> derive_labels(Order([1, 0, 2]), Reads(labels=True, derive_labels=True))
        [False, True, False]
        >>> derive_labels(Order([1, 0], [0.4, 0.6]), Reads(labels=True, derive_labels=True, desirable_above=0.3))
        [True, True]
    """
    if reads.derive_labels and reads.desirable_above is not None and order.scores is not None:
        return [score > reads.desirable_above for score in order.scores]
    if not reads.derive_labels or max(order.ranks) == 0:
        return [None] * len(order.ranks)
    return [rank == 0 for rank in order.ranks]
