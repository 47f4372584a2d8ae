"""Means over a few seeds: Student's t, and many comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .stats import Interval


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean of independent values with its t interval.

    For a few values, such as one per seed, a percentile bootstrap is too narrow: over five it covers 84 % instead of
    95 %. The t interval keeps its level if the values are roughly normal.

    Args:
        values: [N], N >= 2.
        level: confidence level, between 0 and 1.

    Raises:
        ValueError: there are fewer than two values, one is not finite, or `level` is out of range.

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> round(interval.low, 3), interval.mean, round(interval.high, 3)
        (1.037, 3.0, 4.963)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not 0 < level < 1:
        raise ValueError(f"A t interval needs two finite values or more and 0 < level < 1; got {values!r}, {level!r}.")
    half = _quantile((1 + level) / 2, len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    mean = float(array.mean())
    return Interval(mean, mean - half, mean + half, level)


def t_test(values: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's test that the mean of independent values is 0.

    Args:
        values: [N], N >= 2. If all are the same, the result is 1 for zeros and 0 for others.

    Example:
        >>> round(t_test([1.0, 2.0, 3.0, 4.0, 5.0]), 4)
        0.0132
    """
    array = np.asarray(values, dtype=np.float64)
    mean, error = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 1 - _central(abs(mean) / error, len(array) - 1)


def benjamini_hochberg(p_values: Sequence[float], rate: float = 0.05) -> list[bool]:
    """Return which hypotheses are rejected, so that of those rejected a share of at most `rate` is true.

    Args:
        p_values: [M] of tests that are independent or positively dependent.
        rate: the false discovery rate.

    Example:
        >>> benjamini_hochberg([0.01, 0.02, 0.2, 0.04])
        [True, True, False, False]

    Reference:
        Benjamini & Hochberg 1995, Controlling the false discovery rate, JRSS B 57.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    passed = [place for place, i in enumerate(order, start=1) if p_values[i] <= rate * place / len(p_values)]
    rejected = set(order[: max(passed, default=0)])
    return [i in rejected for i in range(len(p_values))]


def _central(t: float, df: int) -> float:
    """P(|T| <= t) for `df` degrees of freedom: Abramowitz & Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    if df % 2:
        term, total = cosine, 0.0
        for k in range(1, (df - 1) // 2 + 1):
            total += term
            term *= cosine**2 * 2 * k / (2 * k + 1)
        return 2 / math.pi * (theta + sine * total)
    term, total = 1.0, 0.0
    for k in range(1, df // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k - 1) / (2 * k)
    return sine * total


def _quantile(probability: float, df: int) -> float:
    wanted, low, high = 2 * probability - 1, 0.0, 1.0
    while _central(high, df) < wanted:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, df) < wanted else (low, middle)
    return (low + high) / 2
