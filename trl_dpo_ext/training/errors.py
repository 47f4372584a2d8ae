"""What the trainer raises: at settings and surroundings that can't work, at checkpoints, and while it trains."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting, or a combination of settings, that can't work. The message says what would."""


class DiskSpaceError(OSError):
    """A run whose first checkpoint would not fit the disk."""


class ModelFolderError(ValueError):
    """A model folder that can't be loaded."""


class CheckpointError(ValueError):
    """A checkpoint that a run can't go on from. The message says which, what is wrong with it, and what is right."""


class TrainingError(RuntimeError):
    """A run that has to stop. The message says what was found, in which rows, what to look at, and what is kept.

    Attributes:
        rows: the rows of the training dataset that the message is about, of all processes.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)
