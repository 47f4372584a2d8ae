"""Settings of a recipe that would be ignored, or that would fail after the model is loaded or after training began."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from trl import ModelConfig

from ..parsing import raise_all
from ..registry import did_you_mean
from ..training import ConfigError, PreferenceConfig
from .metric_names import evaluation_metrics
from .missing_packages import missing_packages
from .unusable_settings import unusable_settings

logger = logging.getLogger(__name__)

# Arguments of `from_pretrained` that a typo may have meant; others can be the model's own.
_LOADING = ("attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "revision", "trust_remote_code")


def check_recipe(arguments: Any, config: PreferenceConfig, model: ModelConfig, named: Collection[str]) -> None:
    """Refuse settings that can't do what they say.

    Args:
        arguments: `RecipeArguments`.
        config: the training configuration.
        model: the model's.
        named: names of the settings that the recipe or the command line gives, whatever their value.

    Raises:
        ParseError: all faults at once.
    """
    raise_all(
        "in the recipe",
        [
            *_ignored(config, named),
            *_length_of_the_run(arguments, config),
            *_evaluation(config, named),
            *unusable_settings(config, model),
            *missing_packages(config, model),
            *_model(config, model, named),
        ],
    )
    if not model.use_peft and (unused := sorted(name for name in named if name.startswith("lora_"))):
        logger.warning(f"All weights are trained: {', '.join(unused)} has no effect without use_peft: true.")


def check_steps(config: PreferenceConfig, rows: Any) -> None:
    """Refuse a dataset that gives no step.

    Args:
        config: the training configuration.
        rows: the training dataset; one that streams isn't counted.

    Raises:
        ConfigError: there are fewer rows than a batch, and `dataloader_drop_last` drops the rest.
    """
    if not config.dataloader_drop_last or not hasattr(rows, "__len__"):
        return
    batch = config.per_device_train_batch_size * config.world_size
    if len(rows) < batch:
        raise ConfigError(
            f"dataloader_drop_last: true leaves no batch to train on: the dataset has {len(rows)} rows, and a batch "
            f"has {batch}. Set dataloader_drop_last: false or a smaller per_device_train_batch_size."
        )


def check_loaded(recipe: Any, rows: Any, *, has_reference: bool) -> None:
    """Refuse what only shows once the trainer is made; a run and its dry run both ask.

    Args:
        recipe: as parsed.
        rows: the training dataset of the trainer, without the rows that `invalid_rows: drop` left out.
        has_reference: whether the run keeps a reference in memory.

    Raises:
        ConfigError: a frontier without a reference, or no row is left to train on.
    """
    if (steps := recipe.arguments.frontier_steps) and not has_reference:
        raise ConfigError(
            f"frontier_steps={steps} measures the KL to the reference, but this run keeps none in "
            "memory: it trains all weights, and no loss reads a reference or its log-probs are computed beforehand. "
            "Train an adapter (use_peft: true), set precompute_ref_log_probs: false, or set frontier_steps: 0."
        )
    check_steps(recipe.config, rows)


def _ignored(config: PreferenceConfig, named: Collection[str]) -> Iterator[str]:
    if "do_train" in named and not config.do_train:
        yield "do_train: false: a recipe always trains. To evaluate a model, use `trl-dpo-ext eval`."
    if config.do_predict:
        yield "do_predict: true predicts nothing here. Remove it; `trl-dpo-ext eval sample` writes samples."
    if config.save_strategy == "steps" and config.save_steps <= 0:
        yield f"save_steps={config.save_steps} saves no checkpoint. Set save_strategy: 'no', or save_steps: 1 or more."


def _length_of_the_run(arguments: Any, config: PreferenceConfig) -> Iterator[str]:
    if config.max_steps == 0:
        yield "max_steps=0 trains nothing. Set 1 or more, or leave it out to train for num_train_epochs."
    if arguments.dataset_streaming and config.max_steps < 0:
        yield "dataset_streaming: true needs max_steps: the number of rows is unknown, so epochs have no length."


def _evaluation(config: PreferenceConfig, named: Collection[str]) -> Iterator[str]:
    never = config.eval_strategy == "no"
    for name in ("do_eval", "eval_on_start", "load_best_model_at_end", "metric_for_best_model"):
        if never and name in named and getattr(config, name):
            yield (
                f"{name} is set, but eval_strategy is 'no', so nothing is evaluated during training. Set "
                "eval_strategy: steps and eval_steps, or eval_strategy: epoch."
            )
    if not never and (metric := config.metric_for_best_model) is not None:
        name = metric.removeprefix("eval_")
        known = evaluation_metrics(config)
        if known and name not in known:
            yield (
                f"metric_for_best_model={metric!r} is not a metric of this run.{did_you_mean(name, known)} It is one "
                f"of: {', '.join(sorted(known))}."
            )


def _model(config: PreferenceConfig, model: ModelConfig, named: Collection[str]) -> Iterator[str]:
    given = config.model_init_kwargs if isinstance(config.model_init_kwargs, dict) else {}
    if "torch_dtype" in given:
        yield "model_init_kwargs: torch_dtype has no effect. Use the setting dtype."
    for key in given:
        if key not in _LOADING and (close := get_close_matches(key, _LOADING, n=1, cutoff=0.8)):
            yield f"model_init_kwargs: {key!r} is unknown. Did you mean {close[0]!r}?"
    if "fsdp" in named and config.fsdp and config.world_size == 1:
        yield "fsdp is set, but one process was started. Start several with `accelerate launch`, or remove it."
