"""trl-dpo-ext: preference losses, trainers and evaluation on top of TRL.

Public names load on first use, so `import trl_dpo_ext` imports neither torch nor trl.
"""

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("trl-dpo-ext")  # from the tag of the release, see pyproject.toml
except PackageNotFoundError:  # a checkout on the path that isn't installed
    __version__ = "0.0.0"

__all__ = [
    "LossSpec",
    "MinorDPOTrainer",
    "PlackettLuceTrainer",
    "PreferenceConfig",
    "PreferencePairs",
    "PreferenceTrainer",
    "RankedResponses",
    "ReferenceFreeTrainer",
    "__version__",
    "get_loss",
    "list_losses",
    "register_loss",
]

# bitsandbytes warns of an optional kernel for CPUs at its import, in every run, whether anything is quantized or not.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))

if TYPE_CHECKING:
    from .losses import LossSpec, get_loss, list_losses, register_loss
    from .training import (
        MinorDPOTrainer,
        PlackettLuceTrainer,
        PreferenceConfig,
        PreferenceTrainer,
        ReferenceFreeTrainer,
    )
    from .types import PreferencePairs, RankedResponses


_MODULES = {
    "losses": ("LossSpec", "get_loss", "list_losses", "register_loss"),
    "types": ("PreferencePairs", "RankedResponses"),
    "training": (
        "MinorDPOTrainer",
        "PlackettLuceTrainer",
        "PreferenceConfig",
        "PreferenceTrainer",
        "ReferenceFreeTrainer",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
