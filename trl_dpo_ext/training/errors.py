"""Errors of the trainer: unusable settings, model folders, disks and checkpoints, and broken training."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting or combination of settings can't work. The message says what to set instead."""


class DiskSpaceError(OSError):
    """A checkpoint doesn't fit on the disk, or can't be written."""


class OutputFolderError(OSError):
    """A run can't have its output folder: another run is using it, or it can't be written."""


class ModelFolderError(ValueError):
    """A model folder can't be loaded."""


class CheckpointError(ValueError):
    """A run can't resume from a checkpoint. The message names it, says what is wrong, and lists alternatives."""


class TrainingError(RuntimeError):
    """The run must stop. The message says what is wrong, in which rows, what to check, and which checkpoint is left.

    Attributes:
        rows: the affected rows of the training dataset, from all processes.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)
