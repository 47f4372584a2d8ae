"""Bootstrap intervals, float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval.
        high: upper end.
        level: share of such intervals that hold the true mean, 0.95 for a 95 % interval.
    """

    mean: float
    low: float
    high: float
    level: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def bootstrap_mean(values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of independent values with its percentile bootstrap interval.

    Args:
        values: [N], N >= 2.
        level: of confidence, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: same seed, same interval.

    Raises:
        ValueError: fewer than two values, one that isn't finite, or a level or number of resamples out of range.

    Example:
        >>> bootstrap_mean([1.0, 1.0, 1.0])
        Interval(mean=1.0, low=1.0, high=1.0, level=0.95)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"An interval needs at least two values, one a sample; got an array of shape {array.shape}.")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"values[{row}]={array[row]} is not finite.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level={level!r}, resamples={resamples!r}: expected 0 < level < 1 and resamples >= 1.")
    generator = np.random.default_rng(seed)
    # One resample at a time, so that memory doesn't grow with their number.
    means = [array[generator.integers(len(array), size=len(array))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high), level)


def bootstrap_difference(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of after - before with its interval; value i of both belongs to the same prompt.

    Pairs are resampled, so what the two have in common (hard prompts, shared random numbers) doesn't widen the
    interval.

    Args:
        before: [N], N >= 2.
        after: [N].
        level: of confidence, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: same seed, same interval.

    Raises:
        ValueError: as `bootstrap_mean`, or different numbers of values.

    Example:
        >>> bootstrap_difference([1.0, 5.0], [2.0, 6.0])
        Interval(mean=1.0, low=1.0, high=1.0, level=0.95)
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before but {len(after)} after: a paired difference needs as many.")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean(difference.tolist(), level=level, resamples=resamples, seed=seed)
