"""Trainers on top of TRL's `DPOTrainer`."""

from .config import PreferenceConfig
from .engine import PreferenceTrainer
from .errors import ConfigError, DiskSpaceError, ModelFolderError
from .hardware import sharding
from .trainers import MinorDPOTrainer, PlackettLuceTrainer, ReferenceFreeTrainer

__all__ = [
    "ConfigError",
    "DiskSpaceError",
    "MinorDPOTrainer",
    "ModelFolderError",
    "PlackettLuceTrainer",
    "PreferenceConfig",
    "PreferenceTrainer",
    "ReferenceFreeTrainer",
    "sharding",
]
