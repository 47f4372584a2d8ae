"""The errors that a user can cause and put right: a command prints their message, without a traceback."""

from __future__ import annotations

from ..data import DataError
from ..evaluation import FrontierError, JudgeError, RewardError
from ..hub import PushError, RunError
from ..hub.merge import MergeError
from ..losses import HyperparameterError
from ..memory import DoesNotFitError, UnknownModelError
from ..parsing import ParseError
from ..record import RecordError
from ..reference import CacheError, ReferenceMismatchError
from ..registry import RegistryError
from ..strict_yaml import YamlError
from ..training import CheckpointError, ConfigError, DiskSpaceError, ModelFolderError, TrainingError

# Something went wrong on the way, though the settings were fine.
FAILURES = (TrainingError, PushError)

USER_ERRORS = (
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    DiskSpaceError,
    DoesNotFitError,
    FileExistsError,
    FileNotFoundError,
    FrontierError,
    HyperparameterError,
    JudgeError,
    MergeError,
    ModelFolderError,
    ParseError,
    RecordError,
    ReferenceMismatchError,
    RegistryError,
    RewardError,
    RunError,
    UnknownModelError,
    YamlError,
    *FAILURES,
)
