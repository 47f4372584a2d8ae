"""Read the frontiers of runs, under the names for tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...evaluation import Frontier, read_frontier


def read_runs(folders: Sequence[str]) -> dict[str, Frontier]:
    """Return the frontier of each run by name: its folder's name if those are unique, else its path.

    Raises:
        ValueError: a run is given twice.
        FrontierError: as `read_frontier`.
    """
    resolved = [Path(run).resolve() for run in folders]
    twice = next((run for run, folder in zip(folders, resolved, strict=True) if resolved.count(folder) > 1), None)
    if twice is not None:
        raise ValueError(f"The run {twice} is given twice.")
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(Path(run)) for run in folders]
    return {name: read_frontier(run) for name, run in zip(names, folders, strict=True)}
