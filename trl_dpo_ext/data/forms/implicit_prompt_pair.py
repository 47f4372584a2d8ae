"""Preference pairs without a prompt column: chosen and rejected both begin with the prompt, as in TRL."""

from __future__ import annotations

from ..row_reading.column_form import ColumnForm, PromptAndResponses, Row
from ..row_reading.response_pair import PAIR_SCORES, check_pair, chosen_first, extract_shared_prompt


def _read_texts(row: Row) -> PromptAndResponses:
    check_pair(row)
    return extract_shared_prompt(row)


FORM = ColumnForm(
    name="preference pairs that begin with their prompt",
    columns=("chosen", "rejected"),
    response_columns=("chosen", "rejected"),
    optional_columns=(*PAIR_SCORES, "ranks", "scores"),
    scores_columns=PAIR_SCORES,
    read_texts=_read_texts,
    read_order=chosen_first,
)
