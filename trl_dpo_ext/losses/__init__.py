"""The preference losses: pure functions on log-probs, one file per family, found through a registry."""

from . import dpo, listwise, minor_dpo, reference_free
from .spec import Hyperparameter, HyperparameterError, LossSpec, get_loss, list_losses, register_loss

__all__ = ["Hyperparameter", "HyperparameterError", "LossSpec", "get_loss", "list_losses", "register_loss"]

del dpo, listwise, minor_dpo, reference_free  # imported to register; reached through the registry
