"""The plot of reward against KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...record import atomic_file
from ..best_of_n_curve import BestOfN
from ..figures import error_bar_arms
from ..figures import figure as make_figure
from .run_comparison import COLOURS, FrontierEntry, colour_by_method

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # coprime to COLOURS, so that each pair of the two is used


def plot_frontier(
    entries: Sequence[FrontierEntry], path: str | Path, title: str = "", best_of_n: Sequence[BestOfN] = ()
) -> None:
    """Draw mean reward against sequence KL on a square-root scale, with one line per run in the order of its steps.

    Vertical bars are the rewards' intervals, horizontal bars two standard errors of the KL on each side. Dominated
    points are hollow. Colours stand for runs, or for methods if there are more runs than colours and runs share
    methods.

    Args:
        entries: from `compare_runs`.
        path: PNG file, written atomically.
        title: title of the figure.
        best_of_n: from `read_best_of_n`: a dashed line with a band, over the upper bound on its KL.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    figure = make_figure(10, 6)
    axis = figure.subplots()
    # Not an option: with more runs than colours, two runs of one colour would look like one.
    grouped = colour_by_method(entries)
    names = [row.method if grouped else row.run for row in entries]
    for number, name in enumerate(dict.fromkeys(names)):
        rows = [row for row, its in zip(entries, names, strict=True) if its == name]
        color, marker = f"C{number % COLOURS}", _MARKERS[number % len(_MARKERS)]
        thin = {"linewidth": 0.6, "alpha": 0.5} if grouped else {"linewidth": 1.0}
        for run in dict.fromkeys(row.run for row in rows):
            line = [row for row in rows if row.run == run]
            axis.plot(*_places(line), color=color, **thin)
        # Bars of very many points would hide everything, so only points that no other dominates keep theirs.
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
    level = entries[0].point.reward.level
    largest = max([row.point.kl.summed for row in entries] + [point.kl_bound for point in best_of_n])
    _square_root(axis, largest)
    axis.set(
        title=title,
        xlabel="sequence KL(policy || reference), nats, ± 2 SE",
        ylabel=f"mean reward, {100 * level:g} % interval",
    )
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, title="hollow: dominated")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _places(rows: Sequence[FrontierEntry]) -> tuple[list[float], list[float]]:
    return [row.point.kl.summed for row in rows], [row.point.reward.mean for row in rows]


def _bars(axis: Any, rows: Sequence[FrontierEntry], color: str) -> None:
    axis.errorbar(
        *_places(rows),
        yerr=np.array([error_bar_arms(row.point.reward) for row in rows]).reshape(-1, 2).T,
        xerr=[2 * row.point.kl.summed_standard_error for row in rows],
        fmt="none",
        ecolor=color,
        elinewidth=0.6,
    )


def _square_root(axis: Any, largest: float) -> None:
    """Put the KL on a square-root scale: a small step changes the reward linearly, the KL quadratically."""
    # Signed, because a bar can end below 0.
    axis.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
    steps = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    ticks = [0.0, *(step for step in steps if largest / 100 <= step <= largest)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
