"""`eval frontier`: reward against KL of training runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._console import console
from .json_output import write_report
from .options import Evaluations, add_json, guarded, nonnegative


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("frontier", help="reward against KL of runs, and which points are dominated")
    command.add_argument(
        "folder", metavar="RUN", nargs="+", help="output folder of a run trained with reward and frontier_steps"
    )
    command.add_argument(
        "--output", metavar="FOLDER", help="write frontier.png, frontier.csv and budgets.csv there; created if needed"
    )
    command.add_argument("--baseline", metavar="METHOD", help="method to compare the others with, for example dpo")
    command.add_argument(
        "--budgets",
        metavar="NATS",
        type=nonnegative,
        nargs="+",
        default=[1, 2, 4, 8],
        help="of KL (default: 1 2 4 8)",
    )
    command.add_argument(
        "--best-of-n", metavar="FILE", help="also draw this curve, written by `eval best-of-n --json FILE`"
    )
    add_json(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from ...evaluation import (
        budgets_table,
        compare_runs,
        frontier_table,
        read_best_of_n,
        within_budgets,
        write_budgets_csv,
        write_frontier_csv,
    )
    from ...evaluation.frontier.frontier_plot import plot_frontier
    from .runs import read_runs

    frontiers = read_runs(arguments.folder)
    entries = compare_runs(frontiers)
    settings = next(iter(frontiers.values())).settings
    curve = [] if arguments.best_of_n is None else read_best_of_n(arguments.best_of_n, settings)
    within = within_budgets(entries, arguments.budgets, baseline=arguments.baseline)
    if arguments.output is not None:
        output = Path(arguments.output)
        output.mkdir(exist_ok=True)
        title = f"{settings['reward']}, {settings['prompts']} prompts, {settings['max_new_tokens']} new tokens"
        try:
            plot_frontier(entries, output / "frontier.png", title, curve)
        except ImportError as error:
            raise ValueError(str(error)) from error
        write_frontier_csv(entries, output / "frontier.csv")
        write_budgets_csv(within, output / "budgets.csv")
    report = {
        "settings": settings,
        "points": [row.as_dict() for row in entries],
        "best_of_n": [point.as_dict() for point in curve],
        "baseline": arguments.baseline,
        "within_budgets": [row.as_dict() for row in within],
    }
    if write_report(arguments, report):
        return
    console().print(frontier_table(entries, settings))
    free = sum(row.dominated_by is None for row in entries)
    print(f"{free} of {len(entries)} points are not dominated (by their means; intervals are ignored).")
    console().print(budgets_table(within, arguments.baseline))
    if arguments.output is not None:
        print(f"Saved to {output}: frontier.png, frontier.csv, budgets.csv.")
