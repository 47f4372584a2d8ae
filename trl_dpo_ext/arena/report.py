"""Tables and pictures of the standings: for the terminal, as Markdown, and as files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..evaluation.stats import Interval
from ..record import atomic_file, hardware, versions, write_json
from .standings import MAIN_BUDGET, Standing, verdicts
from .trial import BUDGETS

COLUMNS = (
    "loss",
    "setting",
    *(f"{budget:g} nats" for budget in BUDGETS),
    f"difference at {MAIN_BUDGET:g}",
    "verdict",
    "KL",
    "length",
    "distinct",
    "chosen",
)
NOTE = (
    "Reward within so many nats of KL, mean over 5 seeds; difference to the baseline with its 95 % t interval, paired "
    "by seed; verdict after Benjamini-Hochberg at 5 %. KL, length and distinct bigrams of samples after the last step; "
    "chosen: change of the better responses' log-prob, nats."
)


def _cells(one: Standing) -> list[str]:
    difference = one.differences.get(MAIN_BUDGET)
    return [
        one.loss,
        one.setting,
        *(f"{one.rewards[budget].mean:.3f}" for budget in BUDGETS),
        "" if difference is None else _interval(difference),
        one.verdict() or "baseline",
        f"{one.kl:.1f}",
        f"{one.length:.1f}",
        f"{one.distinct_bigrams:.2f}",
        f"{one.chosen_shift:+.1f}",
    ]


def _interval(value: Interval) -> str:
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def arena_tables(found: Sequence[Standing], highlighted: Collection[str] = ()) -> list[Table]:
    """Return a table for each kind of data, for `rich.print`.

    Args:
        found: from `standings`.
        highlighted: losses to print in bold, among the others.
    """
    tables = []
    for kind in dict.fromkeys(one.kind for one in found):
        table = Table(title=Text(f"{kind}: reward within a KL budget"), caption=Text(NOTE))
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in ("loss", "setting", "verdict") else "right")
        for one in found:
            if one.kind == kind:
                table.add_row(*map(Text, _cells(one)), style="bold" if one.loss in highlighted else None)
        tables.append(table)
    return tables


def markdown(found: Sequence[Standing], faults: Sequence[str]) -> str:
    """Return the tables, verdicts and faults as Markdown."""
    parts = []
    for kind in dict.fromkeys(one.kind for one in found):
        rows = [_cells(one) for one in found if one.kind == kind]
        lines = [f"### {kind}", "", f"| {' | '.join(COLUMNS)} |", f"| --- | --- |{' ---: |' * (len(COLUMNS) - 2)}"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    losses = sorted({one.loss for one in found})
    parts.append("\n".join(["### Verdicts", "", *(f"- {sentence}" for sentence in verdicts(found, losses))]))
    if faults:
        parts.append("\n".join(["### Faults", "", *(f"- {sentence}" for sentence in faults)]))
    return "\n\n".join(parts) + "\n"


def write_report(
    folder: Path, found: Sequence[Standing], faults: Sequence[str], records: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Write arena.md, arena.json and, where matplotlib is installed, a picture for each kind of data.

    Args:
        folder: where to.
        found: from `standings`.
        faults: from `faults`.
        records: all trials that were run.

    Returns:
        The names of the files.
    """
    with atomic_file(folder / "arena.md") as temporary:
        temporary.write_text(markdown(found, faults), encoding="utf-8")
    record = {
        "standings": [
            {
                "loss": one.loss,
                "kind": one.kind,
                "setting": one.setting,
                "rewards": {f"{budget:g}": value.as_dict() for budget, value in one.rewards.items()},
                "baseline": one.baseline,
                "differences": {f"{budget:g}": value.as_dict() for budget, value in one.differences.items()},
                "verdict": one.verdict(),
            }
            for one in found
        ],
        "faults": list(faults),
        "trials": len(records),
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(folder / "arena.json", record)
    names = ["arena.md", "arena.json"]
    for kind in dict.fromkeys(one.kind for one in found):
        if plot_kind([one for one in found if one.kind == kind], folder / f"arena-{kind}.png"):
            names.append(f"arena-{kind}.png")
    return names


def plot_kind(found: Sequence[Standing], path: Path) -> bool:
    """Draw the mean reward against the mean KL of each loss's points on one kind of data.

    Only the eight best losses and the baseline have colours and names; the rest is grey.

    Returns:
        Whether there is a picture; False without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    named = {one.loss for one in found[:8]} | {found[0].baseline}
    for one in reversed(found):
        points = [row["points"] for row in one.trials]
        kl, reward = (
            [sum(run[i][name] for run in points) / len(points) for i in range(len(points[0]))]
            for name in ("kl", "reward")
        )
        shown: dict[str, Any] = {"color": "0.8", "linewidth": 1, "zorder": 1}
        if one.loss in named:
            shown = {"label": f"{one.loss} ({one.setting})", "marker": "o", "markersize": 3}
        axes.plot(kl, reward, **shown)
    axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    axes.set(xlabel="KL to the reference, nats", ylabel="mean reward", title=found[0].kind, xlim=(0, 20))
    axes.legend(fontsize="small")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True
