"""What the trainer raises at settings and surroundings that can't work."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting, or a combination of settings, that can't work. The message says what would."""


class DiskSpaceError(OSError):
    """A run whose first checkpoint would not fit the disk."""


class ModelFolderError(ValueError):
    """A model folder that can't be loaded."""
