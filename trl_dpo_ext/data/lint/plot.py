"""A histogram of lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .lengths import series
from .report import Report


def plot_lengths(report: Report, path: str | Path, title: str = "") -> None:
    """Draw how long the best, the worst and all responses are, one panel a split.

    Args:
        report: of the linter.
        path: PNG or any format matplotlib knows, by its suffix.
        title: of the whole picture.

    Raises:
        ImportError: matplotlib isn't installed; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'trl-dpo-ext[docs]'.") from error
    path, tables = Path(path), {name: t for name, t in report.tables.items() if len(t.lengths)}
    figure = Figure(figsize=(8, 1 + 3 * max(1, len(tables))), layout="constrained")
    for axis, (name, table) in zip(
        figure.subplots(max(1, len(tables)), squeeze=False).flat, tables.items(), strict=False
    ):
        lengths = {
            label: np.maximum(values, 1) for label, values in series(table.lengths).items() if label != "prompts"
        }
        shortest, longest = min(v.min() for v in lengths.values()), max(v.max() for v in lengths.values())
        bins = np.geomspace(shortest, longest + 1, 41)
        for label, values in lengths.items():
            # Shares, because all responses are more than the best ones.
            weights = np.full(len(values), 1 / len(values))
            text = f"{label.replace('_', ' ')}, mean {values.mean():,.0f}"
            axis.hist(values, bins=bins, weights=weights, histtype="step", label=text)
        axis.set(title=name, xlabel=f"length, {table.unit}", ylabel="share of the responses", xscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=120, format=path.suffix.lstrip("."))
    temporary.replace(path)
