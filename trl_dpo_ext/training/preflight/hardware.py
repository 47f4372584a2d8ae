"""Check before loading a model that the hardware and the sharding support the settings.

docs/scaling.md has the table of combinations.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available, strtobool

from ..._compat.torch import cpu_has_bfloat16
from ..._compat.transformers import attention_of
from ..errors import ConfigError

logger = logging.getLogger(__name__)


def on_cpu(use_cpu: bool) -> bool:
    """Return whether the configuration or accelerate's environment requests the CPU."""
    return use_cpu or bool(strtobool(os.environ.get("ACCELERATE_USE_CPU", "false")))


def check_processes(use_cpu: bool) -> None:
    """Reject more processes than GPUs. NCCL can't share a GPU, and would fail later with a less clear error.

    Raises:
        ConfigError: more processes were launched than GPUs are visible.
    """
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if launched == 1 or on_cpu(use_cpu) or not torch.cuda.is_available():
        return
    if launched > (visible := torch.cuda.device_count()):
        raise ConfigError(
            f"{launched} processes were launched on this machine, but {visible} GPU{'s are' if visible > 1 else ' is'} "
            f"visible, and two processes can't share a GPU. Launch with --num_processes {visible} (raise "
            "gradient_accumulation_steps to keep the batch size), or make more GPUs visible with CUDA_VISIBLE_DEVICES."
        )


def check_bf16(bf16: bool | None, fp16: bool, use_cpu: bool) -> None:
    """Reject bfloat16 if the GPU lacks it or only emulates it. Warn if the CPU emulates it.

    Args:
        bf16, fp16: the settings; `bf16=None` means bfloat16 unless `fp16`, as in TRL.
        use_cpu: whether training on the CPU was requested.

    Raises:
        ConfigError: the GPU has no bfloat16, or there is no GPU and `use_cpu` is False.
    """
    wanted = not fp16 if bf16 is None else bf16
    if not wanted:
        return
    if use_cpu:
        if not cpu_has_bfloat16():
            logger.warning(
                "bf16=True, but this CPU has no bfloat16 instructions and emulates them. On one such CPU, a matrix "
                "product took 70 times as long as in float32. Set bf16: false."
            )
        return
    instead = "Set bf16: false and dtype: float32. Add fp16: true if the model isn't quantized."
    if torch.cuda.is_available():
        # If emulation counts, torch reports support on every GPU.
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            major, minor = torch.cuda.get_device_capability()
            raise ConfigError(
                f"bf16=True, but {torch.cuda.get_device_name()} (compute capability {major}.{minor}) has no bfloat16, "
                f"which needs 8.0 or newer. {instead}"
            )
    elif not is_torch_bf16_gpu_available():
        raise ConfigError(
            "bf16=True (TRL's default), but there is no GPU on this machine. Set bf16: false and dtype: float32."
        )


def check_attention(model: Any, args: Any) -> None:
    """Reject FlexAttention on a CPU: torch has no backward pass for it there, and would say so in the first step.

    Args:
        model: module, Hub id or folder.
        args: the configuration.

    Raises:
        ConfigError: so it is.
    """
    asked = (args.model_init_kwargs or {}).get("attn_implementation")
    if not isinstance(model, str):
        asked = attention_of(model.config)
    if asked == "flex_attention" and args.device.type == "cpu":
        raise ConfigError(
            "attn_implementation='flex_attention' can't train on a CPU: torch has no backward pass for it there. Use "
            "'sdpa', which gives the same numbers."
        )


def sharding(args: Any) -> str | None:
    """Return what shards a model's weights over processes: "FSDP", "DeepSpeed ZeRO-3", or None."""
    if args.fsdp or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return "FSDP"
    plugin = args.deepspeed_plugin
    return "DeepSpeed ZeRO-3" if plugin is not None and plugin.zero_stage == 3 else None


def check_sharding(args: Any, quantization_config: Any) -> None:
    """Reject settings that fail, or silently change results, when a model's weights are sharded.

    Args:
        args: the configuration.
        quantization_config: `BitsAndBytesConfig` or None.

    Raises:
        ConfigError: the weights are sharded and a setting doesn't support it.
    """
    sharded = sharding(args)
    if sharded is None:
        return
    if args.precompute_ref_log_probs and sharded != "FSDP":
        raise ConfigError(
            f"precompute_ref_log_probs=True needs a fingerprint of the reference, which {sharded} loads in parts. "
            "Set it to False. With an adapter, the reference is the base model itself; without one, it is sharded too."
        )
    if args.match_prompts:
        raise ConfigError(
            f"match_prompts=True runs the model before {sharded} has wrapped it. Set it to False, and give the weights "
            "in a column `weight`."
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if sharded == "FSDP" and any(kind in optim for kind in ("8bit", "paged", "bnb", "ademamix")):
        raise ConfigError(
            f"optim={optim!r} can't update weights sharded by FSDP (bitsandbytes issues 89 and 1633). Use "
            "optim='adamw_torch'. Adapters are small, and FSDP shards their optimizer state."
        )
    if quantization_config is None:
        return
    if sharded == "FSDP" and getattr(quantization_config, "load_in_8bit", False):
        raise ConfigError(
            "load_in_8bit stores integers, and FSDP can't shard them. Use load_in_4bit, or DDP instead of FSDP."
        )
    if getattr(quantization_config, "load_in_4bit", False):
        storage = quantization_config.bnb_4bit_quant_storage
        dtype = (args.model_init_kwargs or {}).get("dtype", "float32")
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not storage.is_floating_point or (dtype is not None and storage != dtype):
            name = str(dtype or quantization_config.bnb_4bit_compute_dtype).removeprefix("torch.")
            raise ConfigError(
                f"bnb_4bit_quant_storage={str(storage).removeprefix('torch.')!r}: {sharded} only shards 4-bit weights "
                f"that are stored in the model's own dtype. Set bnb_4bit_quant_storage: {name}."
            )
