"""Trainers on top of TRL's `DPOTrainer`."""

from .checks import DiskSpaceError
from .config import ConfigError, PreferenceConfig
from .engine import PreferenceTrainer
from .trainers import MinorDPOTrainer, PlackettLuceTrainer, ReferenceFreeTrainer

__all__ = [
    "ConfigError",
    "DiskSpaceError",
    "MinorDPOTrainer",
    "PlackettLuceTrainer",
    "PreferenceConfig",
    "PreferenceTrainer",
    "ReferenceFreeTrainer",
]
