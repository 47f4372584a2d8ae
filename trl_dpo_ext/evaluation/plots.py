"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'trl-dpo-ext[demo]'.") from error
    logged = {key for entry in log_history for key in entry}
    figure = Figure(figsize=(10, 7), layout="constrained")
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
