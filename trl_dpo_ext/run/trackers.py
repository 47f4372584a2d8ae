"""What the trackers of `report_to` get besides the logged metrics: the frontier as it grows, and the samples."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback

from ..evaluation import Comparison, FrontierCallback

logger = logging.getLogger(__name__)

_NAME = "samples"


class TrackSamples(TrainerCallback):
    """Log each point of the frontier, and, once training has ended, the samples before and after it.

    Args:
        trainer: a `PreferenceTrainer`. Add this callback last.
        frontier: the callback that takes the points, or None.
    """

    def __init__(self, trainer: Any, frontier: FrontierCallback | None) -> None:
        self._trainer, self._frontier = trainer, frontier
        self._logged = -1
        self._tensorboard: str | None = None
        self._mlflow: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where the trackers write, which they forget when training ends, and log the first point."""
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                self._tensorboard = callback.tb_writer.log_dir
            if isinstance(callback, MLflowCallback):
                self._mlflow = _active_mlflow_run()
        self._log_point(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the point that was taken at this step, if there is one."""
        self._log_point(args, state, control)

    def _log_point(self, args: Any, state: Any, control: Any) -> None:
        point = self._frontier.points[-1] if self._frontier is not None and self._frontier.points else None
        if point is None or point.step != state.global_step or point.step == self._logged:
            return
        self._logged = point.step
        # Not trainer.log: that would also empty the metrics which wait for the next log.
        values = {"frontier/reward": point.reward.mean, "frontier/kl": point.kl.mean}
        asked = control.should_log
        self._trainer.callback_handler.on_log(args, state, control, values)
        control.should_log = asked  # on_log takes it for the step's own log

    def log_samples(self, comparison: Comparison) -> None:
        """Send a table of the samples to the trackers of the run. Call it on the main process, after training."""
        if not self._trainer.is_world_process_zero():
            return
        columns = _columns(comparison)
        for tracker, send in (
            ("tensorboard", self._to_tensorboard),
            ("wandb", self._to_wandb),
            ("mlflow", self._to_mlflow),
        ):
            if tracker in self._trainer.args.report_to:
                try:
                    send(columns)
                except Exception as error:  # the run is complete without it
                    logger.warning(f"The samples were not sent to {tracker}: {error}")

    def _to_tensorboard(self, columns: dict[str, list[Any]]) -> None:
        if self._tensorboard is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(self._tensorboard) as writer:
            writer.add_text(_NAME, _markdown(columns), self._trainer.state.global_step)

    def _to_wandb(self, columns: dict[str, list[Any]]) -> None:
        import wandb

        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        wandb.log({_NAME: wandb.Table(columns=list(columns), data=rows)})

    def _to_mlflow(self, columns: dict[str, list[Any]]) -> None:
        import mlflow

        mlflow.log_table(data=columns, artifact_file=f"{_NAME}.json", run_id=self._mlflow)


def _active_mlflow_run() -> str | None:
    import mlflow

    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


def _columns(comparison: Comparison) -> dict[str, list[Any]]:
    before, after = comparison.before, comparison.after
    return {
        "prompt": [str(prompt) for prompt in before.samples.prompts],
        "before": before.samples.completions,
        "reward before": before.rewards,
        "after": after.samples.completions,
        "reward after": after.rewards,
    }


def _markdown(columns: dict[str, list[Any]]) -> str:
    def cell(value: Any) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        return " ".join(text.replace("|", "\\|").split())

    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)
