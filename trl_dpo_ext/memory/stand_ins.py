"""Stand-ins for what fake tensors can't run: 4-bit layers and GPU kernels. They allocate the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .._compat.torch import flash_attention, memory_efficient_attention
from .._compat.transformers import Conv1D, modules_kept_unquantized, should_convert_module
from .._compat.trl import head_as_on_a_gpu

_BLOCK, _NESTED_BLOCK = 64, 256  # weights that share a scale; scales that share a scale of their own

UNMASKED = "trl_dpo_ext_unmasked"
"""SDPA without a mask. It keeps the same tensors as FlashAttention and FlexAttention."""

AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *args, **kwargs: None)


class Linear4bitStandIn(bnb.nn.Linear4bit):
    """A `Linear4bit` with the bytes of a quantized layer, whose products allocate what bitsandbytes' products do.

    bitsandbytes can't build its parameter from a fake tensor. Its layer dequantizes the weight to the input's dtype for
    the product, and once more to the original dtype for the gradient; it keeps nothing in between. bitsandbytes has GPU
    kernels that don't dequantize for products of few rows; the estimate doesn't rely on them.

    Args:
        rows, columns: size of the weight, out and in.
        bias: the layer's bias.
        dtype: the weight's dtype before quantization.
        quantization: the quantization config.
    """

    bias: Any
    absmax: Tensor
    offset: Tensor

    def __init__(
        self, rows: int, columns: int, bias: Tensor | None, dtype: torch.dtype, quantization: BitsAndBytesConfig
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = columns, rows
        self.compute_dtype = quantization.bnb_4bit_compute_dtype
        self.original_dtype = dtype
        self.nested = bool(quantization.bnb_4bit_use_double_quant)
        storage = quantization.bnb_4bit_quant_storage
        packed = torch.empty(-(-rows * columns // (2 * storage.itemsize)), 1, dtype=torch.uint8)
        packed = packed.repeat(1, storage.itemsize)
        weight: Any = nn.Parameter(packed, requires_grad=False)
        weight.compress_statistics, weight.quant_type = self.nested, quantization.bnb_4bit_quant_type
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        constants = -(-rows * columns // _BLOCK)
        self.register_buffer("code", torch.empty(16))
        self.register_buffer("absmax", torch.empty(constants, dtype=torch.uint8 if self.nested else torch.float32))
        if self.nested:
            self.register_buffer("nested_absmax", torch.empty(-(-constants // _NESTED_BLOCK)))
            self.register_buffer("nested_code", torch.empty(256))
            self.register_buffer("offset", torch.empty(()))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, [out, in]."""
        scales = torch.empty(self.absmax.shape) + self.offset if self.nested else self.absmax
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype)
        del scales  # float32, alive until the weight exists
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as bitsandbytes' layer does."""
        given = x.dtype
        if self.compute_dtype is not None:
            x = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            out: Any = _Product.apply(x, bias, self)
        else:
            out = F.linear(x, self.dequantized(x.dtype), bias)
        return out.to(given)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Linear4bitStandIn) -> Any:
        ctx.layer = layer
        return F.linear(x, layer.dequantized(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad,) = grad_outputs
        return grad @ ctx.layer.dequantized(ctx.layer.original_dtype).to(grad.dtype), None, None


def quantize(model: PreTrainedModel, quantization: BitsAndBytesConfig) -> None:
    """Replace each layer that loading with `quantization` would quantize by its stand-in."""
    kept = modules_kept_unquantized(model, quantization.llm_int8_skip_modules)
    for name, module in list(model.named_modules()):
        if not (isinstance(module, Conv1D) or type(module) is nn.Linear) or not should_convert_module(name, kept):
            continue
        shape = module.weight.shape
        rows, columns = (shape[1], shape[0]) if isinstance(module, Conv1D) else (shape[0], shape[1])
        layer = Linear4bitStandIn(rows, columns, module.bias, module.weight.dtype, quantization)
        model.set_submodule(name, layer)
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010, as transformers sets it


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap an operation that autocast runs in float32 on a GPU but not on a CPU."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        return function(*args, **kwargs)

    return call


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run attention as a GPU does: FlashAttention without a mask, the memory-efficient kernel with one.

    The memory-efficient kernel reads an additive mask in the queries' dtype. torch makes that mask in every layer, with
    rows padded to a multiple of 16 (`preprocess_mask` and `pad_bias` of torch's attention.cpp).
    """
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if attn_mask is None:
        return flash_attention(query, key, value, **options)
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.full((), -math.inf, dtype=query.dtype))
    length = attn_mask.shape[-1]
    if length % 16:
        attn_mask = F.pad(attn_mask, (0, 16 - length % 16))[..., :length]
    bias = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], length)
    return memory_efficient_attention(query, key, value, bias, compute_log_sumexp=torch.is_grad_enabled(), **options)


@contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """While open, operations on fake tensors allocate what they allocate on this device type, "cpu" or "cuda"."""
    if device == "cpu":
        yield
        return
    stand_ins = {
        "scaled_dot_product_attention": _attention,
        "layer_norm": _in_float32(F.layer_norm),
        "softmax": _in_float32(F.softmax),
    }
    plain = {name: getattr(F, name) for name in stand_ins}
    try:
        for name, function in stand_ins.items():
            setattr(F, name, function)
        with head_as_on_a_gpu():
            yield
    finally:
        for name, function in plain.items():
            setattr(F, name, function)
