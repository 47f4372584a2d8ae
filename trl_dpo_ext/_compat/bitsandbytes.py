"""The undocumented bitsandbytes names used here. tests/compat/test_bitsandbytes.py says what breaks without each."""

from __future__ import annotations

from typing import Any

import torch


def allocate_optimizer_state(optimizer: Any) -> None:
    """Make the state of a bitsandbytes optimizer for all its parameters, without a step, which needs a GPU.

    Managed memory of paged states becomes plain tensors: it stays on the card as long as there is room.
    """
    optimizer.get_state_buffer = lambda p, dtype=torch.float32: torch.zeros_like(p, dtype=dtype)
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, g, i)
