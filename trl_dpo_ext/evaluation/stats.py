"""Confidence intervals and paired tests, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: mean of the values.
        low: lower end of the interval.
        high: upper end of the interval.
        level: share of such intervals that contain the true mean, 0.95 for a 95 % interval.
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
        level: confidence level, between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: there are fewer than two values, one is not finite, or `level` or `resamples` is out of range.

    Example:
        >>> bootstrap_mean([1.0, 1.0, 1.0])
        Interval(mean=1.0, low=1.0, high=1.0, level=0.95)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"An interval needs at least two values; got an array of shape {array.shape}.")
    return bootstrap_means(array[:, None], level=level, resamples=resamples, seed=seed)[0]


def bootstrap_means(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """Return the mean of each column with its percentile bootstrap interval. Whole rows are resampled.

    Args:
        values: [N, M], N >= 2 independent rows.
        level: confidence level, between 0 and 1.
        resamples: number of bootstrap resamples, the same for every column.
        seed: the same seed gives the same intervals.

    Returns:
        [M] intervals.

    Raises:
        ValueError: as `bootstrap_mean`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(f"Intervals need at least two rows, one per prompt; got an array of shape {array.shape}.")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        where = f"[{row}, {column}]" if array.shape[1] > 1 else f"[{row}]"
        raise ValueError(f"values{where}={array[row, column]} is not finite.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level={level!r}, resamples={resamples!r}: expected 0 < level < 1 and resamples >= 1.")
    generator = np.random.default_rng(seed)
    # One resample at a time, so that memory doesn't grow with `resamples`.
    means = [array[generator.integers(len(array), size=len(array))].mean(axis=0) for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Interval(float(mean), float(lower), float(upper), level)
        for mean, lower, upper in zip(array.mean(axis=0), low, high, strict=True)
    ]


def bootstrap_difference(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of after - before with its interval. Value i of both belongs to the same prompt.

    Pairs are resampled, so what both have in common (hard prompts, shared random numbers) doesn't widen the interval.

    Args:
        before: [N], N >= 2.
        after: [N].
        level: confidence level, between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: as `bootstrap_mean`, or the numbers of values differ.

    Example:
        >>> bootstrap_difference([1.0, 5.0], [2.0, 6.0])
        Interval(mean=1.0, low=1.0, high=1.0, level=0.95)
    """
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} values before but {len(after)} after: a paired difference needs equal numbers."
        )
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean(difference.tolist(), level=level, resamples=resamples, seed=seed)


def wilson(successes: float, trials: int, *, level: float = 0.95) -> Interval:
    """Return a rate with its Wilson score interval. Its `mean` is successes / trials.

    The interval stays within [0, 1] and keeps its level for few trials and for rates near 0 and 1, unlike the normal
    interval. Count a tie as half a success. Such outcomes vary less than successes and failures of the same rate, so
    the interval is then conservative.

    Args:
        successes: at most `trials`; may end in .5.
        trials: number of independent trials, at least one.
        level: confidence level, between 0 and 1.

    Raises:
        ValueError: there are no trials, or `successes` or `level` is out of range.

    Example:
        >>> interval = wilson(7, 10)
        >>> round(interval.low, 3), interval.mean, round(interval.high, 3)
        (0.397, 0.7, 0.892)

    Reference:
        Wilson 1927, Probable inference, the law of succession, and statistical inference, JASA 22.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes!r} successes of {trials!r}: expected at least one trial, and no more successes.")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: expected 0 < level < 1.")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    rate = successes / trials
    center = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * trials)) / trials) / (1 + z2 / trials)
    # Rounding would move an end of 0 or 1 slightly.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == trials else center + half
    return Interval(rate, low, high, level)


@dataclass(frozen=True)
class SignTest:
    """Whether one of two models does better on the same prompts.

    Attributes:
        first: number of prompts on which the first did better.
        second: number of prompts on which the second did better.
        ties: number of other prompts; the test ignores them.
        p_value: exact and two-sided: the probability of a split at least as uneven if neither were better.
    """

    first: int
    second: int
    ties: int
    p_value: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def sign_test(first: Sequence[float], second: Sequence[float]) -> SignTest:
    """Compare two models prompt by prompt. For outcomes of 0 or 1 this is McNemar's exact test.

    Args:
        first: [N] the first model's values. Value i of both belongs to the same prompt.
        second: [N] the second model's values.

    Raises:
        ValueError: the numbers of values differ, or one is not finite.

    Example:
        >>> sign_test([1, 1, 1, 1, 1, 0, 0.5], [0, 0, 0, 0, 0, 0, 0.5])
        SignTest(first=5, second=0, ties=2, p_value=0.0625)

    Reference:
        McNemar 1947, Psychometrika 12, with the binomial distribution instead of its approximation.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values and {len(second)} values: a paired test needs the same number.")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError(f"Pair {int(np.flatnonzero(~np.isfinite(difference))[0])} is not finite.")
    more, fewer = int((difference > 0).sum()), int((difference < 0).sum())
    decided = more + fewer
    tail = ways = 1
    for k in range(1, min(more, fewer) + 1):
        ways = ways * (decided - k + 1) // k
        tail += ways
    p_value = min(1.0, 2 * tail / 2**decided)
    return SignTest(more, fewer, len(difference) - decided, p_value)
