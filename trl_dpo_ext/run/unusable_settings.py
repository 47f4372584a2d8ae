"""Settings that a library would refuse only once the model is loaded; each is tried on one weight, or looked up."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
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


def unusable_settings(config: PreferenceConfig, model: ModelConfig) -> Iterator[str]:
    """Yield a sentence for each setting that can't be used."""
    for name, known in _CHOICES.items():
        value = getattr(model if hasattr(model, name) else config, name)
        if value is not None and value not in known:
            yield f"{name}={value!r} is unknown.{did_you_mean(str(value), known)} It is one of: {', '.join(known)}."
    yield from _optimizer_and_schedule(config)


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
