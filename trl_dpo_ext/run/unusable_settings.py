"""Settings that a library would refuse only once the model is loaded; each is tried on one weight, or looked up."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from trl import ModelConfig

from ..registry import did_you_mean
from ..training import PreferenceConfig
from .missing_packages import needs_package

_CHOICES = {
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32"),
    "lora_task_type": ("CAUSAL_LM",),
    "dataloader_multiprocessing_context": tuple(multiprocessing.get_all_start_methods()),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl", "xccl"),
}
_CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "context_fn")
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def unusable_settings(config: PreferenceConfig, model: ModelConfig) -> Iterator[str]:
    """Yield a sentence for each setting that can't be used."""
    for name, known in _CHOICES.items():
        value = getattr(model if hasattr(model, name) else config, name)
        if value is not None and value not in known:
            yield f"{name}={value!r} is unknown.{did_you_mean(str(value), known)} It is one of: {', '.join(known)}."
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        given: Any = getattr(config, name, None) or {}
        if unknown := [key for key in given if key not in _CHECKPOINTING]:
            yield (
                f"{name}: {unknown[0]!r} is unknown.{did_you_mean(unknown[0], _CHECKPOINTING)} It takes: "
                f"{', '.join(_CHECKPOINTING)}."
            )
    yield from _compilation(config)
    yield from _data_loader(config)
    yield from _optimizer_and_schedule(config)


def _compilation(config: PreferenceConfig) -> Iterator[str]:
    if config.torch_compile_mode is not None and config.torch_compile_mode not in _COMPILE_MODES:
        yield (
            f"torch_compile_mode={config.torch_compile_mode!r} is unknown."
            f"{did_you_mean(config.torch_compile_mode, _COMPILE_MODES)} It is one of: {', '.join(_COMPILE_MODES)}."
        )
    if (backend := config.torch_compile_backend) not in (None, "inductor", "eager", "aot_eager"):
        known = torch.compiler.list_backends()
        if backend not in known:
            yield f"torch_compile_backend={backend!r} is unknown. It is one of: {', '.join(known)}."


def _data_loader(config: PreferenceConfig) -> Iterator[str]:
    try:
        DataLoader(
            [0],  # type: ignore[arg-type]  # any sequence will do
            num_workers=config.dataloader_num_workers,
            persistent_workers=config.dataloader_persistent_workers,
            prefetch_factor=config.dataloader_prefetch_factor,
            multiprocessing_context=config.dataloader_multiprocessing_context,
        )
    except ValueError as error:
        yield f"The settings dataloader_... can't be used together: {error}."


def _optimizer_and_schedule(config: PreferenceConfig) -> Iterator[str]:
    """Build both for one weight, as the trainer will for the model's."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    named = str(getattr(config.optim, "value", config.optim))
    if not needs_package(named) and "layerwise" not in named:
        try:
            make, options = Trainer.get_optimizer_cls_and_kwargs(config)
            optimizer = make([torch.nn.Parameter(torch.zeros(1))], **options)
        except Exception as error:  # each optimizer raises its own errors
            given = "" if config.optim_args is None else f" and optim_args={config.optim_args!r}"
            yield f"optim={named!r}{given} can't be used: {_first_line(error)}"
    kind = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    kwargs: Any = config.lr_scheduler_kwargs or {}
    try:
        get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=kwargs,
        )
    except Exception as error:
        yield (
            f"lr_scheduler_type={kind!r} with lr_scheduler_kwargs={config.lr_scheduler_kwargs!r} can't be used: "
            f"{_first_line(error)}"
        )


def _first_line(error: Exception) -> str:
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
