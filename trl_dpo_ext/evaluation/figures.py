"""What all plots share: the figure, and the arms of error bars."""

from __future__ import annotations

from typing import Any

from .stats import Interval


def figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure.

    Args:
        width: inches.
        height: inches.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'trl-dpo-ext[demo]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def error_bar_arms(interval: Interval) -> tuple[float, float]:
    """Return the distances from the mean to the ends of its interval, none negative."""
    # Rounding can put an end of a skewed bootstrap interval on the wrong side of the mean.
    return max(0.0, interval.mean - interval.low), max(0.0, interval.high - interval.mean)
