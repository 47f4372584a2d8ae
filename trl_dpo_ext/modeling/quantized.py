"""Keep quantized layers trainable on the CPU."""

from typing import Any

from torch import nn


def keep_4bit_weights(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on the CPU.

    On a CPU with AVX512-BF16, the first forward in evaluation mode repacks the weights permanently. Repacked weights
    propagate no gradients, so the run would learn nothing after its first evaluation, and they can't be dequantized.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
