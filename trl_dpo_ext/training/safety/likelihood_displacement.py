"""Likelihood displacement: chosen and rejected responses become less likely together (arXiv 2410.08847)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from ...losses import list_losses

_FEWEST = 15  # logs
_SIGMAS = 3.0
_NATS = 1.0


def falls(values: Sequence[float]) -> bool:
    """Tell whether a noisy series falls all the way: its three thirds, each below the last by more than the noise.

    "More than the noise" is three standard errors of the difference of two thirds' means, with the spread inside the
    thirds as the noise. From the first to the last third it must come to a nat at least.

    Args:
        values: nats, 6 or more.

    Example:
        >>> falls([10, 11, 10, 7, 8, 7, 3, 4, 3]), falls([10, 11, 10, 7, 8, 7, 10, 11, 10]), falls([5] * 9)
        (True, False, False)
    """
    n = len(values) // 3
    thirds = [values[-3 * n : -2 * n], values[-2 * n : -n], values[-n:]]
    means, errors = [fmean(third) for third in thirds], [variance(third) / n for third in thirds]
    steps = [means[i] - means[i + 1] > _SIGMAS * math.sqrt(errors[i] + errors[i + 1]) for i in (0, 1)]
    return all(steps) and means[0] - means[2] > _NATS


def displaced(history: Sequence[Mapping[str, Any]], reward_scale: float | None) -> tuple[int, float, float] | None:
    """Look for displacement in a run's training logs, oldest first.

    Both log-probs must fall (see `falls`) over the last 15, 30, 60, ... logs. Each span is looked at once in its own
    length, so that a run of any length makes few comparisons and noise has few chances. With a reference,
    log-ratios (reward / beta) are looked at: they fall as the log-probs do, but don't vary with the prompts of a
    batch.

    Args:
        history: `state.log_history`; entries of evaluations are passed over.
        reward_scale: beta of the logged rewards; None without a reference, where log-probs are looked at.

    Returns:
        How many logs, and by how many nats chosen and rejected fell over them (between the means of the first and the
        last third); None if they don't.
    """
    logs = [entry for entry in history if "loss" in entry and "logps/chosen" in entry]
    prefix, scale = ("logps", 1.0) if reward_scale is None else ("rewards", reward_scale)
    span = _FEWEST
    while span <= len(logs):
        if len(logs) % span == 0:
            pair = [[entry[f"{prefix}/{side}"] / scale for entry in logs[-span:]] for side in ("chosen", "rejected")]
            if all(map(falls, pair)):
                n = span // 3
                chosen, rejected = (fmean(values[:n]) - fmean(values[-n:]) for values in pair)
                return span, chosen, rejected
        span *= 2
    return None


def warning(found: tuple[int, float, float]) -> str:
    """Return what `displaced` found in words, with the losses that counter it."""
    span, chosen, rejected = found
    losses = ", ".join(spec.name for spec in list_losses() if spec.counters_displacement)
    return (
        f"Over the last {span} logs the log-probs of chosen and of rejected responses have both fallen steadily, by "
        f"{chosen:.1f} and {rejected:.1f} nats: likelihood displacement (arXiv 2410.08847). The probability goes to "
        f"responses that aren't in the data. Losses that counter it, alone or mixed in: {losses}. A lower learning "
        "rate or a larger beta slows it."
    )
