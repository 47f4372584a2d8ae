"""`trl-dpo-ext eval`, a module for each: samples, win rates, best-of-n, agreement, frontiers, other programs."""

from __future__ import annotations

from .._console import Commands
from . import agreement, best_of_n, frontier, lm_eval, rewardbench, sample, win_rate

EVALUATIONS = (sample, win_rate, best_of_n, agreement, frontier, lm_eval, rewardbench)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("eval", help="measure how good a model is: samples, win rate, best-of-n, frontier")
    evaluations = command.add_subparsers(title="evaluations", metavar="EVALUATION", required=True)
    for evaluation in EVALUATIONS:
        evaluation.add(evaluations)
