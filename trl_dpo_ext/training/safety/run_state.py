"""Save the state that exact resuming needs beyond what transformers saves, and stop cleanly on SIGTERM."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...record import write_json
from ..objective import RunningMean

logger = logging.getLogger(__name__)

RUN_STATE = "run_state.json"


class RunState(TrainerCallback):
    """Saves and restores the losses' running means, the metrics and loss since the last log, and the token count.

    The final `train_loss` stays as in transformers: the mean over the steps of this call of `train`.

    Args:
        trainer: the `PreferenceTrainer` to save and restore.

    Attributes:
        checkpoint: the folder to restore from when training begins, or None.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.checkpoint: str | None = None

    def save(self, folder: str | Path) -> None:
        """Write the state into a checkpoint folder. Every process must call this."""
        trainer = self.trainer
        state = {
            "running_means": {name: asdict(mean) for name, mean in trainer.objective.running_means.items()},
            **trainer.log_state(),
        }
        if trainer.args.should_save:
            write_json(Path(folder) / RUN_STATE, state)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Restore the state. transformers has just reset its own counters."""
        if self.checkpoint is None:
            return
        state = json.loads((Path(self.checkpoint) / RUN_STATE).read_text())
        means = state.pop("running_means")
        self.trainer.objective.running_means = {name: RunningMean(**mean) for name, mean in means.items()}
        self.trainer.restore_log_state(state)


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
