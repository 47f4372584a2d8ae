"""Preference pairs: prompt, chosen, rejected, as in TRL."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, PromptAndResponses, Row
from ..row_reading.response_pair import PAIR_SCORES, check_pair, chosen_first, extract_shared_prompt, pair_of


def _read_texts(row: Row) -> PromptAndResponses:
    check_pair(row)
    # As in TRL: a plain prompt beside whole conversations only repeats their first turn.
    if isinstance(row["prompt"], str) and isinstance(row["chosen"], list):
        return extract_shared_prompt(row)
    return pair_of(row["prompt"], row["chosen"], row["rejected"])


FORM = ColumnForm(
    name="preference pairs",
    columns=("prompt", "chosen", "rejected"),
    response_columns=("chosen", "rejected"),
    optional_columns=(*PAIR_SCORES, "ranks", "scores"),
    scores_columns=PAIR_SCORES,
    read_texts=_read_texts,
    read_order=chosen_first,
)
