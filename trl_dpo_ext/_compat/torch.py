"""Undocumented torch names. tests/compat/test_torch.py says what breaks without each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "DispatchMode",
    "FakeTensor",
    "FakeTensorMode",
    "asked_device",
    "changes_its_input",
    "cpu_has_bfloat16",
    "flash_attention",
    "memory_efficient_attention",
    "no_dispatch",
    "own_buffers",
    "own_parameters",
    "own_state",
    "storage_key",
    "tree_leaves",
    "tree_map_only",
]


class DispatchMode(TorchDispatchMode):
    """A `TorchDispatchMode` without torch.compile's wrapper around each call, which takes a third of the time."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


_DEVICE_QUERY = torch.ops.prim.device.default


def asked_device(operation: Any, args: Any) -> torch.device | None:
    """Return a fake tensor's device if the operation only asks for it, as two of three do; else None."""
    if operation is not _DEVICE_QUERY or not isinstance(args[0], FakeTensor):
        return None
    return torch.device("meta") if args[0].fake_mode.in_kernel_invocation else args[0].fake_device


def storage_key(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's storage among those of all live tensors."""
    key: int = tensor.untyped_storage()._cdata
    return key


def changes_its_input(operation: Any) -> bool:
    """Return whether an operation passed to `__torch_dispatch__` writes into one of its arguments."""
    return bool(operation._schema.is_mutable)


def own_parameters(module: nn.Module) -> dict[str, Any]:
    """Return the mapping of a module's own parameters; it takes values that `setattr` rejects."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Any]:
    """Return the mapping of a module's own buffers."""
    return module._buffers


def own_state(module: nn.Module, prefix: str) -> dict[str, Any]:
    """Return a module's own state without its children. bitsandbytes modules add their quantization statistics."""
    state: dict[str, Any] = {}
    module._save_to_state_dict(state, prefix, keep_vars=False)
    return state


def flash_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Run the FlashAttention operation. On fake tensors it allocates what its kernel allocates on a GPU.

    Args:
        query, key, value: [batch, heads, tokens, head size].
        **options: `dropout_p`, `is_causal`, `scale`.
    """
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, **options)[0]
    return out


def memory_efficient_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """Run the memory-efficient attention operation. On fake tensors it allocates what its kernel does on a GPU.

    Args:
        query, key, value: [batch, heads, tokens, head size].
        bias: additive mask, [batch, heads, tokens, tokens].
        **options: `compute_log_sumexp`, `dropout_p`, `is_causal`, `scale`.
    """
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, **options)[0]
    return out


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions. Without them, oneDNN emulates bfloat16."""
    return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
