"""Check the order of a row's responses: ties, copies with different ranks, ranks against scores."""

from __future__ import annotations

from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten
from .column_form import Order


def check_ranking(responses: list[Any], order: Order, column: str, accepts_ties: bool) -> None:
    """Check that an order makes sense.

    Args:
        responses: K responses.
        order: their ranks and scores.
        column: the responses' column, for messages.
        accepts_ties: accept responses that are all equally good.

    Raises:
        ColumnFault: all are tied, a response is ranked above its copy, or ranks and scores disagree.
    """
    ranks, scores = order.ranks, order.scores
    if max(ranks) == 0 and not accepts_ties:
        raise ColumnFault(
            "labels" if order.labels is not None else "ranks" if scores is None else "scores",
            FaultReason.ALL_TIED,
            f"all {len(ranks)} responses are equally good; only a loss that reads ties or labels learns from it.",
        )
    for worse, rank in enumerate(ranks):
        for better in range(len(ranks)):
            if ranks[better] >= rank:
                continue
            if responses[better] == responses[worse]:
                raise ColumnFault(
                    column,
                    FaultReason.IDENTICAL_RESPONSES,
                    f"responses {better} and {worse} are the same ({shorten(responses[worse])}), but not equally good.",
                )
            if scores is not None and scores[better] < scores[worse]:
                raise ColumnFault(
                    "ranks",
                    FaultReason.RANKS_AND_SCORES_DISAGREE,
                    f"response {better} is ranked above response {worse}, but its score is lower ({scores[better]} < "
                    f"{scores[worse]}). Rank 0 is the best, a higher score is better; correct or remove one column.",
                )
