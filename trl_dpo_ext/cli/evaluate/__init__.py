"""`trl-dpo-ext eval`: samples, win rates, best-of-n, agreement of judges, frontiers of runs. One module each."""

from __future__ import annotations

from .._console import Commands
from . import agreement, best_of_n, frontier, sample, win_rate

EVALUATIONS = (sample, win_rate, best_of_n, agreement, frontier)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("eval", help="measure how good a model is: samples, win rate, best-of-n, frontier")
    evaluations = command.add_subparsers(title="evaluations", metavar="EVALUATION", required=True)
    for evaluation in EVALUATIONS:
        evaluation.add(evaluations)
