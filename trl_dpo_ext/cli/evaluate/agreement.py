"""`eval agreement`: how often judges agree, with each other and with people."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ...evaluation import judge_forms
from .._console import console
from .inputs import get_judges
from .json_output import write_report
from .labels import LABELS
from .options import Evaluations, add_endpoint, add_json, guarded


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("agreement", help="how often judges agree, with each other and with people")
    command.add_argument("pairs", help=".jsonl file of pairs: prompt, first, second, and label columns")
    command.add_argument("--judge", action="append", default=[], help=f"{judge_forms()}; may be given several times")
    command.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column with first, second, tie or nothing; may be given several times",
    )
    add_endpoint(command, "helpful (default), summary")
    add_json(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from ...evaluation import agreement_table, agreements, apply_judge
    from .sources import read_jsonl

    names = [*arguments.label, *arguments.judge]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"Agreement needs at least two different judges or labels, got {', '.join(names) or 'none'}.")
    rows = read_jsonl(arguments.pairs, ("prompt", "first", "second"))
    verdicts: dict[str, Any] = {column: _labels(rows, column, arguments.pairs) for column in arguments.label}
    for name, judge in get_judges(arguments, arguments.judge).items():
        print(f"Judging {len(rows)} pairs with {name}.", file=sys.stderr, flush=True)
        verdicts[name] = apply_judge(judge, *([row[key] for row in rows] for key in ("prompt", "first", "second")))
    found = agreements(verdicts)
    report = {
        "pairs": len(rows),
        "agreements": [{"judges": list(names), **value.as_dict()} for names, value in found.items()],
    }
    if not write_report(arguments, report):
        console().print(agreement_table(found))


def _labels(rows: list[dict[str, Any]], column: str, path: str) -> list[float | None]:
    if not any(column in row for row in rows):
        raise ValueError(f"{path} has no column {column!r}; it has: {', '.join(rows[0])}.")
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str | None) or row.get(column) not in LABELS:
            raise ValueError(f"{path}, row {number}: {column} is {row[column]!r}; expected first, second, tie or null.")
    return [LABELS[row.get(column)] for row in rows]
