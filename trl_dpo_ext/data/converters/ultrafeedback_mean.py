"""openbmb/UltraFeedback as completions with the mean score of the four aspects."""

from __future__ import annotations

from ..converter_registry import Row, register_converter
from .ultrafeedback import scored_by


@register_converter("ultrafeedback_mean", columns=["instruction", "completions"], dataset="openbmb/UltraFeedback")
def ultrafeedback_mean(row: Row) -> Row:
    """openbmb/UltraFeedback by `fine-grained_score`, the mean over the four aspects, 1 to 5; see `ultrafeedback`.

    Other loaders find NaN here; such rows are refused, or left out with `invalid_rows: drop`.
    """
    return scored_by(row, "fine-grained_score")
