"""What the hardware, and the way a model is spread over it, allow; found out before a model is loaded.

docs/scaling.md has the table of combinations.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available, strtobool

from ..._compat.torch import cpu_has_bfloat16
from ..errors import ConfigError

logger = logging.getLogger(__name__)


def on_cpu(use_cpu: bool) -> bool:
    """Tell whether training runs on the CPU, by the configuration or by accelerate's environment."""
    return use_cpu or bool(strtobool(os.environ.get("ACCELERATE_USE_CPU", "false")))


def check_processes(use_cpu: bool) -> None:
    """Refuse more processes than GPUs: NCCL can't let two share one, and fails later and less clearly.

    Raises:
        ConfigError.
    """
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if launched == 1 or on_cpu(use_cpu) or not torch.cuda.is_available():
        return
    if launched > (visible := torch.cuda.device_count()):
        raise ConfigError(
            f"{launched} processes were launched on this machine, and {visible} GPU{'s are' if visible > 1 else ' is'} "
            f"visible; two processes can't share one. Launch with --num_processes {visible} (a larger "
            "gradient_accumulation_steps keeps the batch), or make more visible with CUDA_VISIBLE_DEVICES."
        )


def check_bf16(bf16: bool | None, fp16: bool, use_cpu: bool) -> None:
    """Refuse bfloat16 where it isn't there, or is only emulated; on a CPU, say that it is.

    Args:
        bf16, fp16: the settings; None means bfloat16 unless `fp16`, as in TRL.
        use_cpu: CPUs compute in bfloat16 where `use_cpu` says that one is meant.

    Raises:
        ConfigError.
    """
    wanted = not fp16 if bf16 is None else bf16
    if not wanted:
        return
    if use_cpu:
        if not cpu_has_bfloat16():
            logger.warning(
                "bf16=True, but this CPU has no instructions for bfloat16 and emulates them: a matrix product took 70 "
                "times as long as in float32 on one. Set bf16: false."
            )
        return
    instead = "Set bf16: false and dtype: float32 (fp16: true too, where the model isn't quantized)."
    if torch.cuda.is_available():
        # With emulation counted, torch says yes of every card.
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            major, minor = torch.cuda.get_device_capability()
            raise ConfigError(
                f"bf16=True, but {torch.cuda.get_device_name()} (compute capability {major}.{minor}) has no bfloat16; "
                f"8.0 and newer have it. {instead}"
            )
    elif not is_torch_bf16_gpu_available():
        raise ConfigError("bf16=True (TRL's default), but there is no GPU here. Set bf16: false and dtype: float32.")


def sharding(args: Any) -> str | None:
    """Return what spreads a model's weights over processes: "FSDP", "DeepSpeed ZeRO-3", or None where each has all."""
    if args.fsdp or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return "FSDP"
    plugin = args.deepspeed_plugin
    return "DeepSpeed ZeRO-3" if plugin is not None and plugin.zero_stage == 3 else None


def check_sharding(args: Any, quantization_config: Any) -> None:
    """Refuse what can't work, or silently gives other numbers, where a model's weights are spread.

    Args:
        args: the configuration.
        quantization_config: `BitsAndBytesConfig` or None.

    Raises:
        ConfigError.
    """
    sharded = sharding(args)
    if sharded is None:
        return
    if args.precompute_ref_log_probs:
        raise ConfigError(
            f"precompute_ref_log_probs runs the model before {sharded} has put it together. Set it False: with an "
            "adapter the reference is the base model itself, without one it is sharded too."
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if sharded == "FSDP" and any(kind in optim for kind in ("8bit", "paged", "bnb", "ademamix")):
        raise ConfigError(
            f"optim={optim!r} can't update FSDP's sharded weights (bitsandbytes issues 89 and 1633). Use "
            "optim='adamw_torch': adapters are small, and their state is sharded."
        )
    if quantization_config is None:
        return
    if sharded == "FSDP" and getattr(quantization_config, "load_in_8bit", False):
        raise ConfigError("load_in_8bit stores integers, which FSDP can't shard. Use load_in_4bit, or DDP.")
    if getattr(quantization_config, "load_in_4bit", False):
        storage = quantization_config.bnb_4bit_quant_storage
        dtype = (args.model_init_kwargs or {}).get("dtype", "float32")
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not storage.is_floating_point or (dtype is not None and storage != dtype):
            name = str(dtype or quantization_config.bnb_4bit_compute_dtype).removeprefix("torch.")
            raise ConfigError(
                f"bnb_4bit_quant_storage={str(storage).removeprefix('torch.')!r}: {sharded} only spreads 4-bit weights "
                f"that are stored in the model's own dtype. Set bnb_4bit_quant_storage: {name}."
            )
