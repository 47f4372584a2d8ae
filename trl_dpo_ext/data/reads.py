"""What the losses of a run read of a row besides its responses and their order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reads:
    """What the configured losses read, which decides the rows that are usable and the columns that are kept.

    Attributes:
        ties: responses that are equally good, so rows where all are.
        single_responses: prompts with one response that has a label or a score.
        labels: whether a response is desirable; every row then gets `labels`.
        derive_labels: rows without labels get them from their order: the best responses are desirable, the others not.
        desirable_above: where a row has scores, derived labels say whether a score is greater than this instead.
        reference_scores: the column `reference_scores`, scores of samples of the reference.
        weight: the column `weight`, where there is one.
        mismatched: a completion of another prompt beside each prompt's own responses.
    """

    ties: bool = False
    single_responses: bool = False
    labels: bool = False
    derive_labels: bool = False
    desirable_above: float | None = None
    reference_scores: bool = False
    weight: bool = False
    mismatched: bool = False


EVERY_ROW = Reads(ties=True, single_responses=True)
"""Accepts every row that some loss could be trained on."""
