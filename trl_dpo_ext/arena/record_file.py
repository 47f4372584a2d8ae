"""The file that holds the arena's trials, one JSON object a line; lines are only ever added."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE = "trials.jsonl"
PUBLISHED = Path(__file__).parent / "world_files" / "trials.jsonl.gz"
"""The trials of the published table, if it comes with the package."""


def read_trials(path: Path) -> dict[str, dict[str, Any]]:
    """Return the trials in a file by key; none if there is no file. A line that was cut off is left out."""
    if not path.exists():
        return {}
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = {}
    for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, KeyError, TypeError):
            logger.warning(f"{path}, line {number}: no whole trial. It runs again.")
    return found


def append_trial(path: Path, record: dict[str, Any]) -> None:
    """Add a trial to the file."""
    with open(path, "ab+") as file:
        file.seek(0, 2)
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a line that was cut off
                file.write(b"\n")
        file.write(json.dumps(record, sort_keys=True).encode() + b"\n")
