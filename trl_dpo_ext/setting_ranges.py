"""The range of every numeric setting, in one table: the parser and `PreferenceConfig` read it.

TRL, transformers and PEFT take any number. They fail after the model is loaded, or train nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

_AT_LEAST_0, _AT_LEAST_1 = (Ge(0),), (Ge(1),)
_SHARE = (Ge(0), Lt(1))
_SEED = (Ge(0), Le(2**32 - 1))  # what numpy takes

RANGES: dict[str, tuple[Ge | Gt | Le | Lt, ...]] = {
    # PreferenceConfig
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _AT_LEAST_0,
    "data_seed": _SEED,
    "dataloader_num_workers": _AT_LEAST_0,
    "dataloader_prefetch_factor": _AT_LEAST_1,
    "dataset_num_proc": _AT_LEAST_1,
    "ddp_bucket_cap_mb": _AT_LEAST_1,
    "ddp_timeout": _AT_LEAST_1,
    "f_alpha_divergence_coef": (),
    "eval_accumulation_steps": _AT_LEAST_1,
    "eval_delay": _AT_LEAST_0,
    "eval_steps": (Gt(0),),
    "gradient_accumulation_steps": _AT_LEAST_1,
    "label_smoothing_factor": _AT_LEAST_0,
    "ld_alpha": (Ge(0), Le(1)),
    "learning_rate": (Gt(0),),
    "logging_steps": (Gt(0),),
    "max_grad_norm": _AT_LEAST_0,
    "max_steps": (Ge(-1), Le(2**53)),
    "neftune_noise_alpha": _AT_LEAST_0,
    "num_train_epochs": (Ge(0), Le(1e9)),
    "per_device_eval_batch_size": _AT_LEAST_1,
    "per_device_train_batch_size": _AT_LEAST_1,
    "precompute_ref_batch_size": _AT_LEAST_1,
    "ref_model_mixup_alpha": (Gt(0), Le(1)),
    "ref_model_sync_steps": _AT_LEAST_1,
    "responses_per_pass": _AT_LEAST_1,
    "router_aux_loss_coef": _AT_LEAST_0,
    "save_steps": _AT_LEAST_0,
    "save_total_limit": _AT_LEAST_1,
    "seed": _SEED,
    "torch_empty_cache_steps": _AT_LEAST_1,
    "warmup_steps": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    # trl.ModelConfig
    "lora_alpha": _AT_LEAST_1,
    "lora_dropout": _SHARE,
    "lora_r": _AT_LEAST_1,
    # RecipeArguments
    "eval_max_new_tokens": _AT_LEAST_1,
    "eval_prompts": _AT_LEAST_1,
    "eval_seed": _SEED,
    "frontier_steps": _AT_LEAST_0,
}
_LARGEST = 2**53  # of a whole number; what comes later counts in 64 bits or in floats
_HOLDS = {
    Ge: lambda value, bound: value >= bound.ge,
    Gt: lambda value, bound: value > bound.gt,
    Le: lambda value, bound: value <= bound.le,
    Lt: lambda value, bound: value < bound.lt,
}
_WRITTEN = {Ge: ">= {0.ge}", Gt: "> {0.gt}", Le: "<= {0.le}", Lt: "< {0.lt}"}


def out_of_range(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting that is out of its range, and a sentence.

    Args:
        settings: values by name, each of its type. None and names without a range are passed over.
    """
    for name, value in settings.items():
        bounds = RANGES.get(name)
        if bounds is None or value is None:
            continue
        if isinstance(value, int):
            bounds += (Le(_LARGEST),) if value > _LARGEST else ()
        elif not math.isfinite(value):
            yield name, f"{name}={value} is out of range. Expected {_written(bounds, 'a finite number')}."
            continue
        if not all(_HOLDS[type(bound)](value, bound) for bound in bounds):
            yield name, f"{name}={value} is out of range. Expected {_written(bounds)}."


def _written(bounds: tuple[Any, ...], *more: str) -> str:
    return ", ".join([*more, *(_WRITTEN[type(bound)].format(bound) for bound in bounds)])
