"""Undocumented bitsandbytes names. tests/compat/test_bitsandbytes.py says what breaks without each."""

from __future__ import annotations

from typing import Any

import torch


def allocate_optimizer_state(optimizer: Any) -> None:
    """Allocate the optimizer state for all parameters without taking a step, which would need a GPU.

    Paged states become plain tensors, since they stay in GPU memory while there is room.
    """
    optimizer.get_state_buffer = lambda p, dtype=torch.float32: torch.zeros_like(p, dtype=dtype)
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, g, i)
