"""Quirks of quantized layers."""

from typing import Any

from torch import nn


def keep_4bit_weights(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on the CPU.

    On a CPU with AVX512-BF16 it does so at the first forward in evaluation mode, for good, and packed weights give no
    gradients (after one evaluation a run would go on without learning anything) and can't be dequantized.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
