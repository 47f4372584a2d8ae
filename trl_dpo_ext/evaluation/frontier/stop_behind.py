"""Stops a run that has fallen behind the frontier of earlier runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from ...record import write_json
from ..stats import Interval, bootstrap_mean
from .frontier_callback import FrontierCallback
from .frontier_file import Frontier, FrontierPoint, settings_difference
from .kl_budgets import best_mixture

logger = logging.getLogger(__name__)

STOPPED = "stopped.json"


def behind(point: FrontierPoint, others: Sequence[FrontierPoint]) -> Interval | None:
    """Return how much more reward other runs reach within the KL of a point.

    The others' best mixture of two points within that KL is selected on every second prompt and measured on the rest,
    and vice versa, as `within_budgets` does. The interval is a percentile bootstrap over prompts, paired with the
    point's rewards.

    Args:
        point: one step of a run.
        others: points of other runs with the same settings, so that value i belongs to the same prompt.

    Returns:
        The mean difference with its 95 % interval, or None if no other point is within the KL.
    """
    rewards, kls = np.array([one.rewards for one in others]), np.array([one.kls for one in others])  # [points, N]
    own, spent = np.array(point.rewards), np.array(point.kls)
    measured = np.empty_like(own)
    first, second = slice(0, None, 2), slice(1, None, 2)
    for here, there in ((first, second), (second, first)):
        shares = best_mixture(rewards[:, here].mean(axis=1), kls[:, here].mean(axis=1), float(spent[here].mean()))
        if shares is None:
            return None
        measured[there] = shares @ rewards[:, there]
    return bootstrap_mean((measured - own).tolist())


class StopBehind(TrainerCallback):
    """Stops a run whose last two points are both behind the frontier of earlier runs, and writes `stopped.json`.

    A point is behind if other runs reach more reward within its KL, by an interval that excludes 0. The file says at
    which step the run was stopped, and by how much it was behind.

    Args:
        frontier: the callback that takes the run's points. Add this one after it.
        others: frontiers of earlier runs. Those with other settings can't be compared, and are ignored.
    """

    def __init__(self, frontier: FrontierCallback, others: Sequence[Frontier]) -> None:
        self._frontier = frontier
        self._others = [
            point
            for other in others
            if settings_difference(other.settings, frontier.settings) is None
            for point in other.points
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the end of training if a point was taken at this step and the run is behind."""
        points = [point for point in self._frontier.points if point.step > 0]  # at step 0 all runs are the reference
        if len(points) < 2 or points[-1].step != state.global_step or state.global_step >= state.max_steps:
            return
        found = [behind(point, self._others) for point in points[-2:]] if self._others else []
        clear = [interval for interval in found if interval is not None and interval.low > 0]
        if len(clear) < 2:
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            rows = [
                {"step": point.step, "kl": point.kl.summed, "behind": interval.as_dict()}
                for point, interval in zip(points[-2:], clear, strict=True)
            ]
            write_json(Path(args.output_dir) / STOPPED, {"step": state.global_step, "points": rows})
            logger.warning(
                f"Stopped at step {state.global_step} of {state.max_steps}: within the same KL, earlier runs reach "
                f"{clear[-1].mean:.3f} more reward, and they did at the point before."
            )
