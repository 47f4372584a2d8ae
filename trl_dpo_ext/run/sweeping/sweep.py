"""Several runs of one recipe, one after the other, on one loaded base model."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...evaluation import Frontier, read_frontier
from ...evaluation.frontier.frontier_file import FILE
from ...evaluation.frontier.stop_behind import STOPPED
from ...parsing import ParseError
from ...training import OutputFolderError, TrainingError
from ...training.safety.output_folder import RESULT, held
from ..training_run import train_recipe
from .shared_base import SharedBase
from .sweep_plan import PlannedRun, plan_sweep

logger = logging.getLogger(__name__)


def sweep_recipe(
    args: Sequence[str],
    runs: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]],
    *,
    stop_early: bool = False,
) -> list[Path]:
    """Train a recipe once for each setting of a sweep.

    Each run is seeded as a run of its own and leaves the same files, bit for bit. Runs with an adapter share the
    loaded base model and, through the reference cache, the log-probs of the reference. A finished run is skipped, so a
    sweep that was stopped goes on when it is started again. Several processes may work on the same sweep: each run
    belongs to the one that began it.

    Args:
        args: see `plan_sweep`.
        runs: see `plan_sweep`.
        stop_early: stop runs that fall behind the finished ones; see `StopBehind`.

    Returns:
        The folders of the finished runs, in the sweep's order.

    Raises:
        ParseError: as `plan_sweep`; or there are several processes; or `stop_early` has no frontier to go by.
        TrainingError: runs failed while they were trained. All others are finished.
        USER_ERRORS: a run can't start; see `trl_dpo_ext.run.user_errors`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ParseError("A sweep trains in one process. Start it without a launcher.")
    plan = plan_sweep(args, runs)
    if stop_early and not all(run.recipe.arguments.frontier_steps for run in plan):
        raise ParseError("Stopping early goes by the frontier of each run. Set reward and frontier_steps.")
    base, failed = SharedBase(), {}
    for number, run in enumerate(plan, start=1):
        where = f"Run {number} of {len(plan)}, {run.name}"
        try:
            with held(run.folder):
                if (run.folder / RESULT).exists():
                    logger.info(f"{where}: finished before.")
                    continue
                logger.info(f"{where}.")
                (run.folder / STOPPED).unlink(missing_ok=True)
                train_recipe(run.args, base=base, stop_behind=_frontiers(plan) if stop_early else ())
        except OutputFolderError as error:
            logger.warning(f"{where}: {error}")
        except TrainingError as error:
            logger.error(f"{where}: {error}")
            failed[run.name] = error
        finally:
            _clear()
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(plan)} runs failed: {', '.join(failed)}. The messages are above. The others are "
            "finished. Started again, the sweep tries these anew."
        ) from next(iter(failed.values()))
    return [run.folder for run in plan if (run.folder / RESULT).exists()]


def _frontiers(plan: Sequence[PlannedRun]) -> list[Frontier]:
    return [read_frontier(run.folder) for run in plan if all((run.folder / name).exists() for name in (RESULT, FILE))]


def _clear() -> None:
    """Free the last run's memory, and end its entry in trackers that would write the next run into the same one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for name, end in (("wandb", "finish"), ("trackio", "finish"), ("mlflow", "end_run")):
        if (tracker := sys.modules.get(name)) is not None:
            getattr(tracker, end)()
