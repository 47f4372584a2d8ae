"""openbmb/UltraFeedback as scored completions."""

from __future__ import annotations

from ..conversation_rows import answer_messages
from ..converter_registry import Row, register_converter


def scored_by(row: Row, field: str) -> Row:
    """Return a row of UltraFeedback with the scores in a field of its completions.

    Raises:
        ValueError: a completion has none.
    """
    completions = row["completions"]
    for number, completion in enumerate(completions):
        if completion[field] is None:
            raise ValueError(f"completion {number} has no {field}")
    return {
        "prompt": [{"role": "user", "content": row["instruction"]}],
        "completions": [answer_messages(completion["response"]) for completion in completions],
        "scores": [float(completion[field]) for completion in completions],
    }


@register_converter("ultrafeedback", columns=["instruction", "completions"], dataset="openbmb/UltraFeedback")
def ultrafeedback(row: Row) -> Row:
    """openbmb/UltraFeedback: four completions, scored 1 to 10 by GPT-4 as a whole.

    Written for: `instruction`, text; `completions`, a list of {response, model, overall_score, fine-grained_score,
    annotations, critique, ...}. Looked up in public loaders of it and TRL's script; the project's own page says that
    wrong scores of 10 were corrected in December 2023. Some rows have fewer than four completions, or only ties:
    `invalid_rows: drop` leaves out those that can't be ranked.
    """
    return scored_by(row, "overall_score")
