"""Save the state that exact resuming needs beyond what transformers saves, and stop cleanly on SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from transformers import TrainerCallback

from ...record import Record, read_record, write_json
from ..errors import CheckpointError
from ..objective import RunningMean
from .run_settings import RunSettings

logger = logging.getLogger(__name__)

RUN_STATE = "run_state.json"


class SavedMean(Record):
    """A `RunningMean` in run_state.json."""

    value: float
    batches: int


class SavedState(Record):
    """The content of run_state.json.

    Attributes:
        running_means: of the losses, by name.
        metrics: values since the last log, by name.
        train_tokens: tokens since the run began.
        loss: sum over the steps since the last log.
        last_logged_step: the step of the last log.
        run: see `run_settings`. None in checkpoints of earlier versions.
        planned_steps: the last step of the run, as it was planned then.
        epoch_ended: whether everything due at the end of an epoch had happened, if the checkpoint is at such an end.
        grad_norm, learning_rate: of the last step, for a log that is due at the end of the epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=False, allow_inf_nan=True)

    running_means: dict[str, SavedMean]
    metrics: dict[str, list[float]]
    train_tokens: int
    loss: float
    last_logged_step: int
    run: RunSettings | None = None
    planned_steps: int | None = None
    epoch_ended: bool = True
    grad_norm: float | None = None
    learning_rate: float | None = None


def read_state(folder: str | Path) -> SavedState:
    """Read `run_state.json`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = Path(folder) / RUN_STATE
    try:
        return read_record(path, SavedState, CheckpointError, "Take another checkpoint.")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Take another checkpoint.") from None


class RunState(TrainerCallback):
    """Saves and restores the losses' running means, the metrics and loss since the last log, and the token count.

    It also ends an epoch whose last step is in the checkpoint, but whose evaluation, say, was killed.

    The final `train_loss` stays as in transformers: the mean over the steps of this call of `train`.

    Args:
        trainer: the `PreferenceTrainer` to save and restore.

    Attributes:
        saved: what to restore when training begins, or None.
        steps_trained: number of optimizer steps in this call of `train`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.saved: SavedState | None = None
        self.steps_trained = 0
        self._epoch_ended = False

    def collect(self) -> SavedState:
        """Return the state to save. Every process must call this."""
        trainer = self.trainer
        return SavedState(
            running_means={
                name: SavedMean(value=mean.value, batches=mean.batches)
                for name, mean in trainer.objective.running_means.items()
            },
            run=trainer.run_identity.settings,
            planned_steps=trainer.state.max_steps,
            epoch_ended=self._epoch_ended,
            **trainer.log_state(),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the state. transformers has just reset its own counters."""
        self._epoch_ended, self.steps_trained = False, 0
        if self.saved is None:
            return
        self.trainer.objective.running_means = {
            name: RunningMean(mean.value, mean.batches) for name, mean in self.saved.running_means.items()
        }
        self.trainer.restore_log_state(self.saved)
        state.compute_steps(args, state.max_steps)  # transformers goes on with the intervals in the checkpoint
        if self.saved.planned_steps not in (None, state.max_steps) and state.is_world_process_zero:
            logger.warning(
                f"The run was planned for {self.saved.planned_steps} steps and is now planned for {state.max_steps}. "
                f"Its schedule ({args.lr_scheduler_type}) goes on with the new length."
            )
        if state.global_step >= state.max_steps:
            self.end_epoch()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note that the epoch goes on."""
        self._epoch_ended = False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Count the step."""
        self.steps_trained += 1

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note that the epoch is over: a checkpoint written from now on follows its evaluation."""
        self._epoch_ended = True

    def end_epoch(self) -> None:
        """Do what is due at the end of an epoch, unless it was done before the checkpoint was written."""
        if self.saved is not None and not self.saved.epoch_ended:
            self.saved.epoch_ended = True
            self.trainer.end_epoch()


def write_state(folder: Path, state: SavedState) -> None:
    """Write `run_state.json` into a checkpoint."""
    write_json(folder / RUN_STATE, state.model_dump())


class StopOnSigterm(TrainerCallback):
    """On SIGTERM, finish the step, write a checkpoint, and exit with code 143 (128 + 15).

    `enable_jit_checkpoint` doesn't use transformers' `JITCheckpointCallback` here, for three reasons. It may save
    between the forward passes of a step and its update, when random state and metrics have advanced but the weights
    haven't. Its processes don't agree on the step. And `train` returns as if the run had finished.

    The scheduler must allow time for the longest step (or evaluation) and a checkpoint. torchrun waits 30 seconds.

    Args:
        trainer: the `PreferenceTrainer` to stop.

    Attributes:
        received: this process received the signal.
        any_received: any process received it; the same on all processes.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.received = self.any_received = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signal inside the block. Does nothing outside the main thread or if `save_strategy="no"`."""
        args = self.trainer.args
        self.received = self.any_received = False
        wanted = args.enable_jit_checkpoint and args.save_strategy != "no"
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _on_signal(self, *_: Any) -> None:
        self.received = True
        logger.warning("SIGTERM received. Writing a checkpoint after this step, then exiting.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint."""
        control.should_save |= self.any_received

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint now: after an evaluation, the scheduler may not wait for another step."""
        control.should_save |= self.any_received

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Exit: the checkpoint is complete on all processes.

        Raises:
            SystemExit: with code 143.
        """
        if self.any_received:
            logger.warning("SIGTERM: wrote checkpoint-%d. Resume with resume_from_checkpoint=true.", state.global_step)
            raise SystemExit(128 + signal.SIGTERM)
