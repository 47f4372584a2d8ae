"""Detect likelihood displacement: chosen and rejected responses become less likely together (arXiv 2410.08847)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from ...losses import list_losses

_SHORTEST_SPAN = 15  # logs
_STANDARD_ERRORS = 3.0
_SMALLEST_FALL = 1.0  # nats


def falls_steadily(values: Sequence[float]) -> bool:
    """Return whether a noisy series falls steadily: the mean of each third is below that of the previous third.

    Each difference of means must exceed three standard errors, estimated from the variance within the thirds. The total
    fall from the first to the last third must exceed 1 nat.

    Args:
        values: nats, 6 or more.

    Example:
        >>> falls_steadily([10, 11, 10, 7, 8, 7, 3, 4, 3]), falls_steadily([10, 11, 10, 7, 8, 7, 10, 11, 10])
        (True, False)
    """
    n = len(values) // 3
    thirds = [values[-3 * n : -2 * n], values[-2 * n : -n], values[-n:]]
    means, errors = [fmean(third) for third in thirds], [variance(third) / n for third in thirds]
    steps = [means[i] - means[i + 1] > _STANDARD_ERRORS * math.sqrt(errors[i] + errors[i + 1]) for i in (0, 1)]
    return all(steps) and means[0] - means[2] > _SMALLEST_FALL


def find_displacement(
    history: Sequence[Mapping[str, Any]], reward_scale: float | None
) -> tuple[int, float, float] | None:
    """Look for displacement in a run's training logs.

    Both log-probs must fall (see `falls_steadily`) over the last 15, 30, 60, ... logs. Each span is tested only when
    the number of logs is a multiple of its length, so that long runs make few comparisons and false alarms stay rare.
    With a reference, log-ratios (reward / beta) are tested instead: they fall like the log-probs, but don't vary
    with the prompts of a batch.

    Args:
        history: `state.log_history`, oldest first; evaluation entries are skipped.
        reward_scale: beta of the logged rewards; None without a reference.

    Returns:
        The number of logs in the span, and the fall of the chosen and the rejected log-probs in nats, between the means
        of the first and last third. None if there is no displacement.
    """
    logs = [entry for entry in history if "loss" in entry and "logps/chosen" in entry]
    prefix, scale = ("logps", 1.0) if reward_scale is None else ("rewards", reward_scale)
    span = _SHORTEST_SPAN
    while span <= len(logs):
        if len(logs) % span == 0:
            pair = [[entry[f"{prefix}/{side}"] / scale for entry in logs[-span:]] for side in ("chosen", "rejected")]
            if all(map(falls_steadily, pair)):
                n = span // 3
                chosen, rejected = (fmean(values[:n]) - fmean(values[-n:]) for values in pair)
                return span, chosen, rejected
        span *= 2
    return None


def displacement_warning(found: tuple[int, float, float]) -> str:
    """Return the warning for a result of `find_displacement`, with the losses that counter displacement."""
    span, chosen, rejected = found
    losses = ", ".join(spec.name for spec in list_losses() if spec.counters_displacement)
    return (
        f"Likelihood displacement (arXiv 2410.08847): over the last {span} logs, the log-probs of chosen and rejected "
        f"responses both fell steadily, by {chosen:.1f} and {rejected:.1f} nats. Probability moves to responses that "
        f"aren't in the data. These losses counter it, alone or in a mix: {losses}. A lower learning rate or a larger "
        "beta slows it down."
    )
