"""Texts of preference pairs: checks, and the prompt that chosen and rejected share."""

from __future__ import annotations

from typing import Any

from ..data_error import ColumnFault, FaultReason, shorten
from .column_form import Order, PromptAndResponses, Row
from .values import read_number

PAIR_SCORES = ("score_chosen", "score_rejected")


def pair_of(prompt: Any, chosen: Any, rejected: Any) -> PromptAndResponses:
    """Return the texts of a pair, the better response first."""
    return PromptAndResponses(prompt, [chosen, rejected], [("chosen", "the response"), ("rejected", "the response")])


def chosen_first(row: Row, count: int) -> Order:
    """Return the order of a pair: chosen is the better response. Its scores are those of `PAIR_SCORES`, where given.

    Raises:
        ColumnFault: scores, or a column `ranks` or `scores`, have the two the other way round.
    """
    scores = (
        [read_number(row[column], column, "the score ") for column in PAIR_SCORES]
        if set(PAIR_SCORES) <= set(row)
        else None
    )
    judgements: dict[str, tuple[Any, int]] = {
        "score_chosen": (scores, -1),
        "ranks": (row.get("ranks"), 1),
        "scores": (row.get("scores"), -1),
    }
    for column, (values, sign) in judgements.items():
        known = isinstance(values, list) and len(values) == 2 and all(isinstance(v, int | float) for v in values)
        if known and sign * values[0] > sign * values[1]:
            raise ColumnFault(
                column,
                FaultReason.ORDER_NOT_READ,
                f"found {values}, which says that the rejected response is the better one. Pairs take their order "
                "from 'chosen' and 'rejected'; correct or remove the column.",
            )
    return Order([0, 1], scores)


def check_pair(row: Row) -> None:
    """Check the types of chosen and rejected.

    Raises:
        ColumnFault: one is neither a string nor a message list, or is empty.
    """
    for column in ("chosen", "rejected"):
        if not isinstance(row[column], (str, list)):
            raise ColumnFault(
                column,
                FaultReason.WRONG_TYPE,
                f"found {shorten(row[column])}, expected a string or a message list.",
            )
        if not row[column]:
            raise ColumnFault(column, FaultReason.EMPTY_RESPONSE, f"the response is {row[column]!r}, expected text.")


def extract_shared_prompt(row: Row) -> PromptAndResponses:
    """Split chosen and rejected into the prompt with which both begin, and the two responses.

    Raises:
        ColumnFault: their types differ, or they share no beginning.
    """
    from trl import extract_prompt  # imports transformers, which takes seconds

    if type(row["chosen"]) is not type(row["rejected"]):
        raise ColumnFault(
            "rejected", FaultReason.MIXED_TYPES, "chosen and rejected must both be strings, or both message lists."
        )
    pair = extract_prompt({"chosen": row["chosen"], "rejected": row["rejected"]})
    if not pair["prompt"]:
        raise ColumnFault(
            "chosen",
            FaultReason.EMPTY_PROMPT,
            "chosen and rejected have no beginning in common to serve as the prompt; add a column 'prompt' of the same "
            "type as theirs.",
        )
    return pair_of(pair["prompt"], pair["chosen"], pair["rejected"])
