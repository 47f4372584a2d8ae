"""Names of torch that its documentation doesn't promise."""

from __future__ import annotations

import torch


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 products; without them oneDNN emulates them."""
    return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
