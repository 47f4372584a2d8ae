"""Tables and CSV files of compared runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ...record import atomic_file
from ..stats import Interval
from .kl_budgets import WithinBudget
from .run_comparison import FrontierEntry, colour_by_method


def frontier_table(entries: Sequence[FrontierEntry], settings: Mapping[str, Any]) -> Table:
    """Return a table of the points, for `rich.print`.

    Args:
        entries: from `compare_runs`.
        settings: settings of the runs.
    """
    level = entries[0].point.reward.level
    table = Table(
        title=Text(
            f"Mean reward ({settings['reward']}) against sequence KL, {settings['prompts']} prompts, "
            f"{settings['max_new_tokens']} new tokens, [{100 * level:g} % interval]"
        )
    )
    methods = ("method",) if colour_by_method(entries) else ()
    for column in (*methods, "run", "step", "reward", "KL, nats ± SE", "dominated by"):
        table.add_column(column, justify="left" if column in ("method", "run", "dominated by") else "right")
    for row in entries:
        r, kl = row.point.reward, row.point.kl
        table.add_row(
            *(Text(row.method) for _ in methods),
            Text(row.run),
            str(row.point.step),
            Text(f"{r.mean:.3f} [{r.low:.3f}, {r.high:.3f}]"),
            f"{kl.summed:.3f} ± {kl.summed_standard_error:.3f}",
            Text("" if row.dominated_by is None else f"{row.dominated_by[0]}, step {row.dominated_by[1]}"),
        )
    return table


def budgets_table(found: Sequence[WithinBudget], baseline: str | None = None) -> Table:
    """Return a table of rewards within KL budgets, for `rich.print`.

    Args:
        found: from `within_budgets`.
        baseline: the baseline that was given there.
    """
    level = next((row.reward.level for row in found if row.reward is not None), None)
    note = "" if level is None else f" [{100 * level:g} % interval over prompts, for one comparison at a time]"
    table = Table(title=Text(f"Mean reward within a budget of KL{note}"))
    difference = () if baseline is None else (f"minus {baseline}",)
    for column in ("KL ≤", "method", "reward", *difference, "KL at most"):
        table.add_column(Text(column), justify="left" if column == "method" else "right")
    for row, following in zip(found, [*found[1:], None], strict=False):
        table.add_row(
            f"{row.budget:g}",
            Text(row.method),
            _interval(row.reward),
            *(_interval(row.difference, "+") for _ in difference),
            "n/a" if row.kl is None else f"{row.kl:.3f}",
            end_section=following is not None and following.budget != row.budget,
        )
    return table


def write_frontier_csv(entries: Sequence[FrontierEntry], path: str | Path) -> None:
    """Write one line per point, atomically."""
    _write_csv([_flat(row) for row in entries], path)


def write_budgets_csv(found: Sequence[WithinBudget], path: str | Path) -> None:
    """Write one line per budget and method, atomically. Missing numbers are empty."""
    rows = []
    for row in found:
        numbers: dict[str, Any] = {"budget": row.budget, "method": row.method}
        for name, interval in (("reward", row.reward), ("difference", row.difference)):
            ends = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
            numbers.update(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        numbers["kl"] = row.kl
        for half in (0, 1):
            picks = row.picks[half] if row.picks else ()
            numbers[f"pick_{half + 1}"] = " + ".join(f"{p.share:.3f} {p.run}, step {p.step}" for p in picks)
        rows.append(numbers)
    _write_csv(rows, path)


def _flat(row: FrontierEntry) -> dict[str, Any]:
    reward, kl = row.point.reward, row.point.kl
    run, step = row.dominated_by or ("", "")
    return {
        "run": row.run,
        "method": row.method,
        "step": row.point.step,
        "reward": reward.mean,
        "reward_low": reward.low,
        "reward_high": reward.high,
        "kl": kl.summed,
        "kl_standard_error": kl.summed_standard_error,
        "kl_log_ratio": kl.mean,
        "kl_log_ratio_standard_error": kl.standard_error,
        "dominated_by_run": run,
        "dominated_by_step": step,
    }


def _interval(interval: Interval | None, sign: str = "") -> Text:
    if interval is None:
        return Text("n/a")
    return Text(f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]")


def _write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
