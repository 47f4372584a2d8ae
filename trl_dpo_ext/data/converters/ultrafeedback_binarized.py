"""HuggingFaceH4/ultrafeedback_binarized with its scores."""

from __future__ import annotations

from ..converter_registry import Row, register_converter


@register_converter(
    "ultrafeedback_binarized",
    columns=["chosen", "rejected", "score_chosen", "score_rejected"],
    dataset="HuggingFaceH4/ultrafeedback_binarized",
)
def ultrafeedback_binarized(row: Row) -> Row:
    """HuggingFaceH4/ultrafeedback_binarized and trl-lib/ultrafeedback_binarized, with their scores.

    Written for: `chosen` and `rejected`, whole conversations that differ in the last message; `score_chosen` and
    `score_rejected`, floats. Looked up in the dataset's card; the splits are called train_prefs and test_prefs (train
    and test in trl-lib's). Without a converter both datasets load as pairs; this one keeps the scores, for losses that
    read them, and treats equal scores as a tie.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected differ before their last message, so they answer different prompts")
    return {
        "prompt": chosen[:-1],
        "completions": [chosen[-1:], rejected[-1:]],
        "scores": [float(row["score_chosen"]), float(row["score_rejected"])],
    }
