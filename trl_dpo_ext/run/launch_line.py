"""Check the number of processes against the accelerate config and the machine, before any process starts."""

from __future__ import annotations

from pathlib import Path

import torch

from ..strict_yaml import read_yaml
from ..training import ConfigError

_SHARDED = ("FSDP", "DEEPSPEED")


def check_launch(config: Path, processes: int | None) -> None:
    """Refuse a launch that would start other processes than were asked for, or none that can run.

    Args:
        config: accelerate's config file.
        processes: what `--num_processes` says; None leaves it to the config.

    Raises:
        ConfigError: the number doesn't fit the config, its machines or the GPUs of this machine.
        YamlError: the config can't be read.
    """
    settings = read_yaml(config).values
    kind = str(settings.get("distributed_type", "NO")).upper()
    machines = int(settings.get("num_machines") or 1)
    said = f"{config.name} says num_processes: {settings.get('num_processes')}" if processes is None else ""
    said = said or f"--num_processes {processes}"
    count = int(settings.get("num_processes") or 1) if processes is None else processes
    if count < 1:
        raise ConfigError(f"{said}: a run has at least one process.")
    if kind == "NO" and count > 1:
        raise ConfigError(
            f"{said}, but {config.name} has distributed_type: NO, which starts one process whatever the number. Use "
            "--accelerate_config ddp (GPUs) or cpu_2 (CPU), or leave --num_processes out."
        )
    if count % machines:
        raise ConfigError(
            f"{said}, but {config.name} has {machines} machines, and each runs the same number of processes: give a "
            f"multiple of {machines}."
        )
    if settings.get("use_cpu") or kind == "NO":
        return
    here, visible = count // machines, torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if kind in _SHARDED and not visible:
        raise ConfigError(
            f"{config.name} shards the run over GPUs ({kind}), and this machine shows none: accelerate would train "
            "without sharding. To try two processes on the CPU, use --accelerate_config cpu_2."
        )
    if 0 < visible < here:
        raise ConfigError(
            f"{said}: {here} processes on this machine, but {visible} GPU{'s are' if visible > 1 else ' is'} visible, "
            f"and two processes can't share a GPU. Launch with --num_processes {visible * machines} (raise "
            "gradient_accumulation_steps to keep the batch size), or make more GPUs visible with CUDA_VISIBLE_DEVICES."
        )
