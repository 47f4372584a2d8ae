"""JSON output of an evaluation."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sources import Prompts


def temperature_of(temperature: float, *sources: str) -> float | None:
    """Return the temperature that sources are sampled at, None if all are files of samples."""
    from .sources import is_file

    return None if all(map(is_file, sources)) else temperature


def settings(arguments: argparse.Namespace, prompts: Prompts) -> dict[str, Any]:
    """Return the settings that two reports must share to be compared."""
    from ...evaluation.frontier.frontier_file import prompts_sha256

    return {
        "data": arguments.data,
        "prompts": len(prompts.rows),
        "prompts_sha256": prompts_sha256(prompts.texts),
        "max_new_tokens": arguments.max_new_tokens,
        "seed": arguments.seed,
    }


def write_report(arguments: argparse.Namespace, report: dict[str, Any]) -> bool:
    """Write the report to the file of --json, if any. Return whether it was printed instead of a table."""
    from ...record import versions, write_json

    report = {**report, "versions": versions()}
    if arguments.json == "-":
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif arguments.json is not None:
        write_json(arguments.json, report)
    return bool(arguments.json == "-")
