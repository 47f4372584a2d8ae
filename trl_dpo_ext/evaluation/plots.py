"""The plot of a training run: its curves, and samples before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..record import atomic_file
from .before_after import Comparison
from .figures import error_bar_arms
from .figures import figure as make_figure
from .stats import Interval

# Panels of `plot_curves`: title, unit, and the logged keys in order of preference.
_PANELS: tuple[tuple[str, str, tuple[tuple[str, ...], ...]], ...] = (
    ("loss", "nats", (("loss",),)),
    (
        "margin, best against worst",
        "nats",
        (("rewards/margins",),),
    ),
    (
        "agreement with the ranking",
        "share of prompts",
        (("rewards/accuracies", "rewards/top1_accuracies"),),
    ),
    ("log-prob of best and worst response", "nats", (("logps/chosen", "logps/rejected"),)),
)


def plot_curves(
    log_history: Sequence[dict[str, Any]], path: str | Path, title: str = "", comparison: Comparison | None = None
) -> None:
    """Draw loss, margins, accuracy and log-probs over training, evaluations as dots.

    Args:
        log_history: `trainer.state.log_history`, one dict per log.
        path: PNG, or any other format of matplotlib.
        title: title of the figure.
        comparison: evaluations before and after training. It adds a row with mean reward, win rate and sequence KL.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    figure = make_figure(10, 7 if comparison is None else 10)
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
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format=Path(path).suffix.lstrip(".") or None)


def _outcome(figure: Any, comparison: Comparison) -> None:
    before, after, wins = comparison.before, comparison.after, comparison.win_rate.rate
    rewards, win_rate, kl = figure.subplots(1, 3)
    level = f"{100 * wins.level:g} % interval"
    for place, interval in enumerate((before.reward, after.reward)):
        _vertical_bar(rewards, place, interval)
    rewards.set(title=f"mean reward, {level}", xticks=[0, 1], xticklabels=["before", "after"])
    _vertical_bar(win_rate, 0, wins)
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


def _vertical_bar(axis: Any, place: float, interval: Interval) -> None:
    axis.errorbar(place, interval.mean, yerr=[[d] for d in error_bar_arms(interval)], fmt="o", color="C0", capsize=4)
