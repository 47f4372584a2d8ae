"""Lengths of prompts and responses: summaries, the length bias of the labels, outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .row_store import RowStore

_MIN_PROMPTS = 30  # with fewer, an interval of the normal distribution is too narrow
_NOTABLE_SHARE = 0.6


@dataclass(frozen=True)
class LengthBias:
    """How much longer the best response is than the worst; ties share their mean length.

    Attributes:
        prompts: how many were compared: those whose responses aren't all tied.
        difference: best - worst, mean over prompts, in characters or tokens.
        low: lower end of its 95 % interval (normal approximation).
        high: upper end.
        longer: share of the prompts where the best response is the longer one.
        shorter: share of the prompts where it is the shorter one.
    """

    prompts: int
    difference: float
    low: float
    high: float
    longer: float
    shorter: float

    @classmethod
    def of(cls, lengths: RowStore) -> LengthBias | None:
        """Compare the responses; None with fewer than two prompts whose responses aren't all tied."""
        if not len(lengths):
            return None
        best, worst = (
            lengths.totals(np.where(chosen, lengths.responses, 0)) / lengths.totals(chosen.astype(np.int64))
            for chosen in (lengths.best, lengths.worst)
        )
        ranked = ~lengths.best[lengths.starts] | ~lengths.worst[lengths.starts]
        difference = (best - worst)[ranked]
        n = len(difference)
        if n < 2:
            return None
        mean, half = float(difference.mean()), 1.96 * float(difference.std(ddof=1)) / math.sqrt(n)
        longer, shorter = float((difference > 0).mean()), float((difference < 0).mean())
        return cls(n, mean, mean - half, mean + half, longer, shorter)

    @property
    def notable(self) -> bool:
        """Whether it is worth a warning.

        That is: 30 or more prompts, an interval without 0, and one side longer in over 60 % of the prompts where
        lengths differ.
        """
        differ = self.longer + self.shorter
        one_side = max(self.longer, self.shorter) > _NOTABLE_SHARE * differ
        return self.prompts >= _MIN_PROMPTS and one_side and not self.low <= 0 <= self.high

    def sentence(self, unit: str) -> str:
        """Return the bias in words."""
        return (
            f"the best response is longer than the worst in {self.longer:.0%} and shorter in {self.shorter:.0%} of "
            f"{self.prompts:,} prompts; best - worst is "
            f"{self.difference:+.1f} {unit} on average (95 % interval {self.low:+.1f} to {self.high:+.1f})"
        )


def ordinary_range(values: np.ndarray) -> tuple[float, float]:
    """Return the shortest and the longest length that isn't extreme.

    These are Tukey's outer fences on a log scale, because lengths are skewed: the lower quartile divided, and the upper
    one multiplied, by the third power of their ratio. A ratio below 2 counts as 2, so an extreme length is always more
    than 8 times shorter than the lower quartile or 8 times longer than the upper one.

    Example:
        >>> ordinary_range(np.array([80, 100, 100, 120]))
        (11.875, 840.0)
    """
    if not len(values):
        return 0.0, math.inf
    lower, upper = np.quantile(np.maximum(values, 1), [0.25, 0.75]).tolist()
    ratio = max(2.0, upper / lower)
    return lower / ratio**3, upper * ratio**3


def length_numbers(lengths: RowStore, unit: str) -> dict[str, Any]:
    """Return the lengths in numbers, for JSON."""
    numbers: dict[str, Any] = {"unit": unit}
    for name, values in length_series(lengths).items():
        if len(values):
            quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
            keys = ("min", "lower_quartile", "median", "upper_quartile", "max")
            numbers[name] = {**dict(zip(keys, quartiles, strict=True)), "mean": float(values.mean())}
    bias = LengthBias.of(lengths)
    numbers["best_minus_worst"] = vars(bias).copy() if bias else None
    return numbers


def length_sentence(lengths: RowStore, unit: str) -> str:
    """Return the lengths in words, for people."""
    if not len(lengths):
        return "no lengths"
    prompt, response = np.median(lengths.prompts), np.median(lengths.responses)
    longest = lengths.responses.max()
    words = f"prompts of {prompt:,.0f}, responses of {response:,.0f} {unit} (medians; the longest has {longest:,})"
    bias = LengthBias.of(lengths)
    return f"{words}; {bias.sentence(unit)}" if bias else words


def length_series(lengths: RowStore) -> dict[str, np.ndarray]:
    """Return the lengths of prompts, responses, and of the best and the worst responses."""
    if not len(lengths):
        return {}
    return {
        "prompts": lengths.prompts,
        "responses": lengths.responses,
        "best_responses": lengths.responses[lengths.best],
        "worst_responses": lengths.responses[lengths.worst],
    }
