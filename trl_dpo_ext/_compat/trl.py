"""Every TRL name used here outside TRL's documented API, in one place; tests/test_trl_contract.py checks each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

import trl.trainer.utils as _utils
from trl import DPOConfig
from trl.kernels import chunked_logprob as _head
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, use_adapter

__all__ = [
    "add_fused_lm_head",
    "disable_gradient_checkpointing",
    "head_as_on_a_gpu",
    "plain_dpo_config",
    "use_adapter",
]

# Fields that DPOTrainer.__init__ checks against its own list of losses, with TRL's defaults. PreferenceConfig has
# checked what the user set.
_LOSS_FIELDS: dict[str, Any] = {
    field.name: field.default if field.default_factory is MISSING else field.default_factory()
    for field in fields(DPOConfig)
    if field.name in ("loss_type", "loss_weights", "beta", "label_smoothing", "f_divergence_type")
} | {"enable_jit_checkpoint": False}  # the trainer does it itself, see StopOnSigterm


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


class _NoKernel:
    """A Triton kernel that computes nothing: `kernel[grid](...)`."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


@contextmanager
def head_as_on_a_gpu() -> Iterator[None]:
    """While open, the fused head allocates on any tensors what it does on a GPU; its kernels compute nothing.

    On a GPU, Triton kernels fold each tile of logits in place and the products accumulate without temporaries; on a
    CPU, torch operations make several float32 copies of a tile.
    """
    stand_ins: dict[Any, dict[str, Any]] = {
        _utils: {"_use_triton": lambda device: True},
        _head: {
            "_use_triton": lambda device: True,
            "_forward_kernel": _NoKernel(),
            "_backward_kernel": _NoKernel(),
            "_addmm_fp32": lambda acc, a, b: None,
            "triton": SimpleNamespace(cdiv=lambda a, b: -(-a // b)),
        },
    }
    missing = object()
    saved = {module: {name: getattr(module, name, missing) for name in names} for module, names in stand_ins.items()}
    for module, names in stand_ins.items():
        for name, value in names.items():
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, names in saved.items():
            for name, value in names.items():
                if value is missing:
                    delattr(module, name)
                else:
                    setattr(module, name, value)
