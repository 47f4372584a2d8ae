"""What a run needs to go on as if it had not stopped, beyond what transformers saves; and stopping on SIGTERM."""

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
    """Keeps in checkpoints the losses' running means, metrics and loss since the last log, and tokens.

    The `train_loss` at a run's end stays what it is in transformers: the mean over the steps of this call of `train`.

    Args:
        trainer: the `PreferenceTrainer` this belongs to.

    Attributes:
        checkpoint: the folder to restore from when training begins, or None.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.checkpoint: str | None = None

    def save(self, folder: str | Path) -> None:
        """Write the state into a checkpoint's folder; every process calls this."""
        trainer = self.trainer
        state = {
            "running_means": {name: asdict(mean) for name, mean in trainer.objective.running_means.items()},
            **trainer.log_state(),
        }
        if trainer.args.should_save:
            write_json(Path(folder) / RUN_STATE, state)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Restore: transformers has just set its own counters to 0."""
        if self.checkpoint is None:
            return
        state = json.loads((Path(self.checkpoint) / RUN_STATE).read_text())
        means = state.pop("running_means")
        self.trainer.objective.running_means = {name: RunningMean(**mean) for name, mean in means.items()}
        self.trainer.restore_log_state(state)


class StopOnSigterm(TrainerCallback):
    """On SIGTERM, finish the step, write a checkpoint, and end with code 143 (128 + 15, as shells count).

    transformers' `JITCheckpointCallback`, which `enable_jit_checkpoint` names, isn't used: it also saves between the
    forward passes of a step and its update, when random state and metrics have moved on and the weights haven't; its
    processes don't agree on the step; and `train` returns as if the run were over.

    A scheduler must wait for the longest step (or evaluation) and a checkpoint; torchrun waits 30 seconds.

    Args:
        trainer: the `PreferenceTrainer` this belongs to.

    Attributes:
        asked: this process has had the signal.
        agreed: some process has had it, as all of them know.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked = self.agreed = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signal while open. Only Python's main thread can; `save_strategy="no"` leaves it alone."""
        args = self.trainer.args
        self.asked = self.agreed = False
        wanted = args.enable_jit_checkpoint and args.save_strategy != "no"
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        logger.warning("SIGTERM: a checkpoint is written after this step, then the run ends.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        control.should_save |= self.agreed

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint: an evaluation may take longer than a scheduler waits for the next step."""
        control.should_save |= self.agreed

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End: the checkpoint is whole on all processes.

        Raises:
            SystemExit: 143.
        """
        if self.agreed:
            logger.warning(
                "SIGTERM: checkpoint-%d is written. Go on with resume_from_checkpoint=true.", state.global_step
            )
            raise SystemExit(128 + signal.SIGTERM)
