"""The preference losses: pure functions on log-probs, one file per family, found through a registry."""

# Imported to register their losses, which are reached through the registry.
from . import (  # noqa: F401
    batch,
    displacement,
    dpo,
    links,
    listwise,
    minor_dpo,
    reference_free,
    reference_free_listwise,
    soft_labels,
    ties,
    unpaired,
)
from .spec import Hyperparameter, HyperparameterError, LossSpec, get_loss, list_losses, register_loss

__all__ = ["Hyperparameter", "HyperparameterError", "LossSpec", "get_loss", "list_losses", "register_loss"]
