"""A histogram of the lengths of responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...record import atomic_file
from .findings_report import Report
from .lengths import length_series


def plot_lengths(report: Report, path: str | Path, title: str = "") -> None:
    """Draw the lengths of the best, the worst and all responses, one panel per split.

    Args:
        report: what the linter found.
        path: the picture's file; its suffix is a format that matplotlib knows.
        title: the picture's title.

    Raises:
        ImportError: matplotlib isn't installed; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'trl-dpo-ext[docs]'.") from error
    path, splits = Path(path), {name: split for name, split in report.splits.items() if len(split.lengths)}
    figure = Figure(figsize=(8, 1 + 3 * max(1, len(splits))), layout="constrained")
    for axis, (name, split) in zip(
        figure.subplots(max(1, len(splits)), squeeze=False).flat, splits.items(), strict=False
    ):
        lengths = {
            label: np.maximum(values, 1) for label, values in length_series(split.lengths).items() if label != "prompts"
        }
        shortest, longest = min(v.min() for v in lengths.values()), max(v.max() for v in lengths.values())
        bins = np.geomspace(shortest, longest + 1, 41)
        for label, values in lengths.items():
            # Shares, because all responses are more than the best ones.
            weights = np.full(len(values), 1 / len(values))
            text = f"{label.replace('_', ' ')}, mean {values.mean():,.0f}"
            axis.hist(values, bins=bins, weights=weights, histtype="step", label=text)
        axis.set(title=name, xlabel=f"length, {split.unit}", ylabel="share of the responses", xscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lstrip("."))
