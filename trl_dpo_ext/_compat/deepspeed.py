"""What DeepSpeed does to a model's weights."""

from __future__ import annotations

from torch import nn


def full_size(weight: nn.Parameter) -> int:
    """Return how many values a weight has over all processes.

    ZeRO-3 leaves each parameter empty between forwards, so `numel()` is 0, and keeps the true number in `ds_numel`.
    """
    return int(getattr(weight, "ds_numel", weight.numel()))
