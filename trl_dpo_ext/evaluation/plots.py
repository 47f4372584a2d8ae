"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dominance import PlacedPoint

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


def plot_curves(log_history: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw loss, margins, accuracy and log-probs over training, with evaluation as dots.

    Args:
        log_history: `trainer.state.log_history`, one dict per log.
        path: PNG or any format matplotlib knows.
        title: of the whole picture.

    Raises:
        ImportError: matplotlib isn't installed; the message says how to get it.
    """
    figure = _figure(10, 7)
    logged = {key for entry in log_history for key in entry}
    for axis, (name, unit, choices) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
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
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_frontier(placed: Sequence[PlacedPoint], path: str | Path, title: str = "") -> None:
    """Draw mean reward against sequence KL, a line for each run in the order of its steps.

    Upright bars are the rewards' intervals, level ones two standard errors of the KL to each side. Dominated points are
    hollow.

    Args:
        placed: from `gather`.
        path: PNG file; it appears whole or not at all.
        title: of the picture.

    Raises:
        ImportError: matplotlib isn't installed; the message says how to get it.
    """
    figure = _figure(9, 6)
    axis = figure.subplots()
    for run in dict.fromkeys(row.run for row in placed):
        rows = [row for row in placed if row.run == run]
        points = [row.point for row in rows]
        kls, rewards = [point.kl.summed for point in points], [point.reward for point in points]
        means = [reward.mean for reward in rewards]
        container = axis.errorbar(
            kls,
            means,
            # A bootstrap interval of a skewed mean may, by a rounding, end on the wrong side of it.
            yerr=[[max(0.0, r.mean - r.low) for r in rewards], [max(0.0, r.high - r.mean) for r in rewards]],
            xerr=[2 * point.kl.summed_standard_error for point in points],
            linewidth=1,
            elinewidth=0.6,
            label=run,
        )
        color = container.lines[0].get_color()
        faces = ["none" if row.dominated_by else color for row in rows]
        axis.scatter(kls, means, facecolors=faces, edgecolors=color, zorder=3)
    level = placed[0].point.reward.level
    axis.set(
        title=title,
        xlabel="sequence KL(policy || reference), nats, ± 2 SE",
        ylabel=f"mean reward, {100 * level:g} % interval",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, title="hollow: dominated")
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'trl-dpo-ext[demo]'.") from error
    return Figure(figsize=(width, height), layout="constrained")
