"""The preference losses: pure functions on log-probs, found by name through a registry.

`families/` holds the losses, one file per family. The files beside this one hold what the families share.
"""

from . import families as families  # importing it registers the built-in losses
from .hyperparameters import Hyperparameter, HyperparameterError
from .loss_registry import LOSSES, get_loss, list_losses, register_loss
from .loss_spec import LossSpec
from .trl_fields import TRL_LOSS_FIELDS

__all__ = [
    "LOSSES",
    "TRL_LOSS_FIELDS",
    "Hyperparameter",
    "HyperparameterError",
    "LossSpec",
    "get_loss",
    "list_losses",
    "register_loss",
]
