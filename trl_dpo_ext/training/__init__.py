"""Trainers on top of TRL's `DPOTrainer`."""

from .config import PreferenceConfig
from .engine import PreferenceTrainer
from .errors import (
    CheckpointError,
    ConfigError,
    DiskSpaceError,
    ModelFolderError,
    OutputFolderError,
    TrainingError,
)
from .preflight.hardware import sharding
from .trainers import MinorDPOTrainer, PlackettLuceTrainer, ReferenceFreeTrainer

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DiskSpaceError",
    "MinorDPOTrainer",
    "ModelFolderError",
    "OutputFolderError",
    "PlackettLuceTrainer",
    "PreferenceConfig",
    "PreferenceTrainer",
    "ReferenceFreeTrainer",
    "TrainingError",
    "sharding",
]
