"""Print the tables in docs/evaluation.md from the results of the experiment.

python recipes/controlled_sentiment/table.py benchmarks/results/controlled_sentiment.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def reached(results: Mapping[str, Any]) -> str:
    """Return each method's largest mean reward, its KL, and the number of points that aren't dominated."""
    points = results["points"]
    lines = [
        "| method | runs | points, not dominated | most reward | its KL ± SE, nats | run, step |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for method in methods(results):
        rows = [point for point in points if point["method"] == method and point["step"]]
        best = max(rows, key=lambda point: point["reward"]["mean"])
        free = sum(point["dominated_by"] is None for point in rows)
        kl = f"{best['kl']['summed']:.2f} ± {best['kl']['summed_standard_error']:.2f}"
        runs = len({point["run"] for point in rows})
        where = f"{best['run']}, {best['step']}"
        lines.append(f"| {method} | {runs} | {len(rows)}, {free} | {interval(best['reward'])} | {kl} | {where} |")
    return "\n".join(lines)


def within(results: Mapping[str, Any]) -> str:
    """Return the baseline's reward within each KL budget, and the difference of each other method."""
    baseline, rows = results["baseline"], results["within_budgets"]
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    cells = {(row["method"], row["budget"]): row for row in rows}
    lines = [
        f"| KL at most, nats | {' | '.join(f'{budget:g}' for budget in budgets)} |",
        f"| --- |{' ---: |' * len(budgets)}",
        f"| **{baseline}** | {' | '.join(interval(cells[baseline, budget]['reward']) for budget in budgets)} |",
    ]
    for method in methods(results):
        if method != baseline:
            found = " | ".join(interval(cells[method, budget]["difference"], "+") for budget in budgets)
            lines.append(f"| {method}, against {baseline} | {found} |")
    return "\n".join(lines)


def methods(results: Mapping[str, Any]) -> list[str]:
    """Return the methods in the order of the grid."""
    return list(dict.fromkeys(point["method"] for point in results["points"]))


def interval(values: Mapping[str, float] | None, sign: str = "") -> str:
    """Return a mean with its interval."""
    if values is None:
        return "n/a"
    return f"{values['mean']:{sign}.2f} [{values['low']:{sign}.2f}, {values['high']:{sign}.2f}]"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    print(reached(found), within(found), sep="\n\n")
