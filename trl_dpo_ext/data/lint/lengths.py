"""How long prompts and responses are: summaries, the length bias of the labels, outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .row_store import Groups

_FEWEST = 30  # prompts, below which an interval of the normal distribution is too narrow
_NOTABLE = 0.6


@dataclass(frozen=True)
class LengthBias:
    """How much longer the best response is than the worst; ties share their mean length.

    Attributes:
        prompts: compared, those whose responses aren't all tied.
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
    def of(cls, lengths: Groups) -> LengthBias | None:
        """Compare the responses; None where fewer than two prompts can be."""
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

        30 prompts or more, an interval without 0, and one side the longer in over 60 % of the prompts that differ.
        """
        differ = self.longer + self.shorter
        one_side = max(self.longer, self.shorter) > _NOTABLE * differ
        return self.prompts >= _FEWEST and one_side and not self.low <= 0 <= self.high

    def sentence(self, unit: str) -> str:
        """Return it in words."""
        return (
            f"the best response is longer than the worst in {self.longer:.0%} and shorter in {self.shorter:.0%} of "
            f"{self.prompts:,} prompts; best - worst is "
            f"{self.difference:+.1f} {unit} on average (95 % interval {self.low:+.1f} to {self.high:+.1f})"
        )


def ordinary_range(values: np.ndarray) -> tuple[float, float]:
    """Return the shortest and the longest length that isn't extreme.

    Tukey's outer fences on a log scale, because lengths are skewed: a quartile, divided or multiplied by the third
    power of the quartiles' ratio. The ratio is taken as 2 where it is less, so what is extreme is always more than 8
    times shorter than the lower quartile or 8 times longer than the upper one.

    Example:
        >>> ordinary_range(np.array([80, 100, 100, 120]))
        (11.875, 840.0)
    """
    if not len(values):
        return 0.0, math.inf
    lower, upper = np.quantile(np.maximum(values, 1), [0.25, 0.75]).tolist()
    ratio = max(2.0, upper / lower)
    return lower / ratio**3, upper * ratio**3


def summary(lengths: Groups, unit: str) -> dict[str, Any]:
    """Return lengths in numbers, for JSON."""
    numbers: dict[str, Any] = {"unit": unit}
    for name, values in series(lengths).items():
        if len(values):
            quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
            keys = ("min", "lower_quartile", "median", "upper_quartile", "max")
            numbers[name] = {**dict(zip(keys, quartiles, strict=True)), "mean": float(values.mean())}
    bias = LengthBias.of(lengths)
    numbers["best_minus_worst"] = vars(bias).copy() if bias else None
    return numbers


def sentence(lengths: Groups, unit: str) -> str:
    """Return lengths in words, for people."""
    if not len(lengths):
        return "no lengths"
    prompt, response = np.median(lengths.prompts), np.median(lengths.responses)
    longest = lengths.responses.max()
    words = f"prompts of {prompt:,.0f}, responses of {response:,.0f} {unit} (medians; the longest has {longest:,})"
    bias = LengthBias.of(lengths)
    return f"{words}; {bias.sentence(unit)}" if bias else words


def series(lengths: Groups) -> dict[str, np.ndarray]:
    """Return the lengths of prompts, responses, and of the best and the worst responses."""
    if not len(lengths):
        return {}
    return {
        "prompts": lengths.prompts,
        "responses": lengths.responses,
        "best_responses": lengths.responses[lengths.best],
        "worst_responses": lengths.responses[lengths.worst],
    }
