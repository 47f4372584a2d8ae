"""Every TRL name used here outside TRL's documented API, in one place; tests/test_trl_contract.py checks each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

__all__ = ["disable_gradient_checkpointing", "plain_dpo_config", "use_adapter"]

# Fields that DPOTrainer.__init__ checks against its own list of losses. Ours are checked by PreferenceConfig.
_LOSS_FIELDS: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "beta": 0.1,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "enable_jit_checkpoint": False,  # the trainer does it itself, see StopOnSigterm
}


@contextmanager
def plain_dpo_config(args: Any, **changes: Any) -> Iterator[None]:
    """While open, `args` asks for plain DPO, so that `DPOTrainer.__init__` finds nothing of ours to refuse.

    Args:
        args: the config.
        **changes: other fields, and the values they have meanwhile.
    """
    meanwhile = {**_LOSS_FIELDS, **changes}
    saved = {name: getattr(args, name) for name in meanwhile}
    for name, value in meanwhile.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(args, name, value)
