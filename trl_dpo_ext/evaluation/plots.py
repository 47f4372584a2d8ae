"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .best_of_n import BestOfN
from .dominance import COLOURS, PlacedPoint, by_method
from .report import Comparison
from .stats import Interval

# Panels of `plot_curves`: title, unit, and the logged keys in order of preference; with a reference the rewards exist,
# without one the log-probs themselves order the responses.
_PANELS: tuple[tuple[str, str, tuple[tuple[str, ...], ...]], ...] = (
    ("loss", "nats", (("loss",),)),
    (
        "margin, best against worst",
        "nats",
        (("rewards/margins",), ("mean_logps/margins",), ("logps/margins",)),
    ),
    (
        "agreement with the ranking",
        "share of prompts",
        tuple((f"{p}/accuracies", f"{p}/top1_accuracies") for p in ("rewards", "mean_logps", "logps")),
    ),
    ("log-prob of best and worst response", "nats", (("logps/chosen", "logps/rejected"),)),
)

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # their number and that of the colours have no divisor in common


def plot_curves(
    log_history: Sequence[dict[str, Any]], path: str | Path, title: str = "", comparison: Comparison | None = None
) -> None:
    """Draw loss, margins, accuracy and log-probs over training, with evaluation as dots; below them, what came of it.

    Args:
        log_history: `trainer.state.log_history`, one dict per log.
        path: PNG or any format matplotlib knows.
        title: of the whole picture.
        comparison: of samples before and after training: a row of mean reward, win rate and sequence KL, with bars.

    Raises:
        ImportError: matplotlib isn't installed; the message says how to get it.
    """
    figure = _figure(10, 7 if comparison is None else 10)
    rows = 1 if comparison is None else 2
    above, *below = figure.subfigures(rows, 1, squeeze=False, height_ratios=(7, 3)[:rows]).flat
    logged = {key for entry in log_history for key in entry}
    for axis, (name, unit, choices) in zip(above.subplots(2, 2).flat, _PANELS, strict=True):
        keys = next((keys for keys in choices if keys[0] in logged), ())
        for key in keys:
            train = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            evaluation = [(entry["step"], entry[f"eval_{key}"]) for entry in log_history if f"eval_{key}" in entry]
            line = axis.plot(*zip(*train, strict=True), label=key)[0] if train else None
            if evaluation:
                axis.plot(*zip(*evaluation, strict=True), "o", color=line and line.get_color(), label=f"eval_{key}")
        axis.set(title=name, xlabel="optimizer step", ylabel=unit)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    if comparison is not None:
        _outcome(below[0], comparison)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _outcome(figure: Any, comparison: Comparison) -> None:
    before, after, wins = comparison.before, comparison.after, comparison.win_rate.rate
    rewards, win_rate, kl = figure.subplots(1, 3)
    level = f"{100 * wins.level:g} % interval"
    for place, interval in enumerate((before.reward, after.reward)):
        _upright(rewards, place, interval)
    rewards.set(title=f"mean reward, {level}", xticks=[0, 1], xticklabels=["before", "after"])
    _upright(win_rate, 0, wins)
    win_rate.axhline(0.5, color="black", linestyle="--", linewidth=1)
    win_rate.set(title=f"win rate, {level}", xticks=[0], xticklabels=["after against before"], ylim=(0, 1))
    kl.set(title="sequence KL, ± 2 SE", ylabel="nats", xticks=[0], xticklabels=["after"])
    if after.kl is None:
        kl.text(0, 0.5, "no reference", ha="center", transform=kl.get_xaxis_transform())
    else:
        kl.errorbar(0, after.kl.mean, yerr=2 * after.kl.standard_error, fmt="o", capsize=4)
    for axis in (rewards, win_rate, kl):
        axis.margins(x=0.5)
        axis.grid(alpha=0.3)


def _upright(axis: Any, place: float, interval: Interval) -> None:
    axis.errorbar(place, interval.mean, yerr=[[d] for d in _arms(interval)], fmt="o", color="C0", capsize=4)


def _arms(interval: Interval) -> tuple[float, float]:
    # A bootstrap interval of a skewed mean may, by a rounding, end on the wrong side of it.
    return max(0.0, interval.mean - interval.low), max(0.0, interval.high - interval.mean)


def plot_frontier(
    placed: Sequence[PlacedPoint], path: str | Path, title: str = "", best_of_n: Sequence[BestOfN] = ()
) -> None:
    """Draw mean reward against sequence KL on a square-root scale, a line for each run in the order of its steps.

    Upright bars are the rewards' intervals, level ones two standard errors of the KL to each side. Dominated points are
    hollow. Where runs share methods and outnumber the colours, a colour stands for a method.

    Args:
        placed: from `gather`.
        path: PNG file; it appears whole or not at all.
        title: of the picture.
        best_of_n: from `read_best_of_n`: a dashed line with a band, over the bound on its KL.

    Raises:
        ImportError: matplotlib isn't installed; the message says how to get it.
    """
    figure = _figure(10, 6)
    axis = figure.subplots()
    # No flag for this: with more runs than colours, two runs of one colour would be taken for one.
    grouped = by_method(placed)
    names = [row.method if grouped else row.run for row in placed]
    for number, name in enumerate(dict.fromkeys(names)):
        rows = [row for row, its in zip(placed, names, strict=True) if its == name]
        color, marker = f"C{number % COLOURS}", _MARKERS[number % len(_MARKERS)]
        thin = {"linewidth": 0.6, "alpha": 0.5} if grouped else {"linewidth": 1.0}
        for run in dict.fromkeys(row.run for row in rows):
            line = [row for row in rows if row.run == run]
            axis.plot(*_places(line), color=color, **thin)
        # The bars of very many points would cover everything: those that can be the best of all keep theirs.
        _bars(axis, [row for row in rows if not grouped or row.dominated_by is None], color)
        faces = ["none" if row.dominated_by else color for row in rows]
        size = 20 if grouped else 36
        axis.scatter(*_places(rows), s=size, marker=marker, facecolors=faces, edgecolors=color, linewidths=1, zorder=3)
        axis.plot([], [], color=color, marker=marker, linewidth=1, label=name)
    if best_of_n:
        bounds, rewards = [point.kl_bound for point in best_of_n], [point.reward for point in best_of_n]
        label = f"best of n ≤ {best_of_n[-1].n}, KL at most"
        axis.plot(bounds, [r.mean for r in rewards], "--", color="black", linewidth=1.5, label=label, zorder=4)
        axis.fill_between(bounds, [r.low for r in rewards], [r.high for r in rewards], color="black", alpha=0.12)
    level = placed[0].point.reward.level
    largest = max([row.point.kl.summed for row in placed] + [point.kl_bound for point in best_of_n])
    _square_root(axis, largest)
    axis.set(
        title=title,
        xlabel="sequence KL(policy || reference), nats, ± 2 SE",
        ylabel=f"mean reward, {100 * level:g} % interval",
    )
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, title="hollow: dominated")
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _places(rows: Sequence[PlacedPoint]) -> tuple[list[float], list[float]]:
    return [row.point.kl.summed for row in rows], [row.point.reward.mean for row in rows]


def _bars(axis: Any, rows: Sequence[PlacedPoint], color: str) -> None:
    axis.errorbar(
        *_places(rows),
        yerr=np.array([_arms(row.point.reward) for row in rows]).reshape(-1, 2).T,
        xerr=[2 * row.point.kl.summed_standard_error for row in rows],
        fmt="none",
        ecolor=color,
        elinewidth=0.6,
    )


def _square_root(axis: Any, largest: float) -> None:
    """Scale the KL: a small change of the policy moves the reward by its size, and the KL by its square."""
    # Signed, since a bar may end below 0.
    axis.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
    steps = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    ticks = [0.0, *(step for step in steps if largest / 100 <= step <= largest)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'trl-dpo-ext[demo]'.") from error
    return Figure(figsize=(width, height), layout="constrained")
