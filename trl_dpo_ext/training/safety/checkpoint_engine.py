"""Refuse to resume with an engine that can't read a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import CheckpointError
from .checkpoint_files import read_marker
from .engines import Engine, engine_of, optimizer_name, why_unreadable
from .together import from_main_process

logger = logging.getLogger(__name__)


def engine_now(trainer: Any) -> Engine:
    """Return the engine of a trainer, with its optimizer if that has been created."""
    return engine_of(trainer.accelerator, optimizer_name(trainer.optimizer))


def check_engine(checkpoint: str, trainer: Any) -> None:
    """Refuse a checkpoint that this run's engine can't read.

    Raises:
        CheckpointError: on all processes; it names both engines.
    """
    saved = from_main_process(lambda: read_marker(checkpoint).engine, CheckpointError)
    now = engine_now(trainer)
    if saved is None:
        logger.warning(f"{checkpoint} doesn't say which engine wrote it: not checked. Now it is {now}.")
    elif (reason := why_unreadable(saved, now)) is not None:
        raise CheckpointError(
            f"Can't resume from {checkpoint!r}: {reason}.\n  then: {saved}\n  now:  {now}\n"
            "Start the run as it was started then. Or use the checkpoint's weights as the model of a new run."
        )
