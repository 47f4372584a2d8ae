"""One run: evaluate, train, evaluate again, save."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from trl import get_quantization_config

from ..data.prompts import TokenizedPrompt, held_out_prompts
from ..evaluation import (
    Comparison,
    Evaluation,
    Frontier,
    FrontierCallback,
    Reward,
    compare,
    evaluate_policy,
    get_reward,
)
from ..evaluation.frontier.stop_behind import StopBehind
from ..evaluation.sampling.sequence_kl import Reference
from ..memory import check_fits, explain_out_of_memory, most_responses
from ..training import DiskSpaceError, PreferenceTrainer
from ..training.safety.disk_errors import is_disk_full
from ..training.safety.output_folder import held, refuse_if_in_use
from .dry_run import dry_run
from .evaluate_first import EvaluateFirst
from .model_kind import check_model_kind
from .recipe_checks import check_loaded, check_steps
from .recipe_data import load_recipe_splits
from .recipe_settings import Recipe, adapter_config, parse_recipe
from .run_outputs import save_outputs
from .sweeping.shared_base import SharedBase
from .trackers import TrackSamples

logger = logging.getLogger(__name__)


def train_recipe(
    args: Sequence[str] | None = None, *, base: SharedBase | None = None, stop_behind: Sequence[Frontier] = ()
) -> None:
    """Train as a recipe says, and save the model, its record, a picture and a card in `output_dir`.

    Args:
        args: `--config FILE` and options; None takes those of the command line.
        base: the base model that runs with an adapter share; None loads it for this run.
        stop_behind: frontiers of earlier runs; a run that falls behind them is stopped, see `StopBehind`.

    Raises:
        USER_ERRORS: see `trl_dpo_ext.run.user_errors`.
    """
    try:
        _run(args, base, stop_behind)
    except torch.OutOfMemoryError as error:
        raise explain_out_of_memory(error) from error
    except Exception as error:
        if isinstance(error, DiskSpaceError) or not is_disk_full(error):
            raise
        where = f" ({file})" if (file := getattr(error, "filename", None)) else ""
        raise DiskSpaceError(
            f"The disk is full{where}. Make room, then start again with resume_from_checkpoint: true: the run goes on "
            "from its newest complete checkpoint."
        ) from error


def _run(args: Sequence[str] | None, base: SharedBase | None, stop_behind: Sequence[Frontier]) -> None:
    started = time.time()
    recipe = parse_recipe(args)
    arguments, config = recipe.arguments, recipe.config
    refuse_if_in_use(str(config.output_dir))
    reward = get_reward(arguments.reward) if arguments.reward else None
    check_model_kind(recipe.model, bool(config.trust_remote_code))
    splits = load_recipe_splits(recipe)
    check_steps(config, splits["train"])
    check_fits(config, recipe.model, responses=most_responses(splits["train"]))
    if arguments.dry_run:
        dry_run(recipe, splits)
        return
    with base.in_use() if base is not None and recipe.model.use_peft else contextlib.nullcontext():
        trainer = PreferenceTrainer(
            model=recipe.model.model_name_or_path,
            args=config,
            train_dataset=splits["train"],
            eval_dataset=splits["test"] if config.eval_strategy != "no" else None,
            quantization_config=get_quantization_config(recipe.model),
            peft_config=adapter_config(recipe.model),
        )
    check_loaded(recipe, trainer.train_dataset, has_reference=trainer.has_reference)
    with held(str(config.output_dir)):
        if trainer.is_finished():
            if trainer.is_world_process_zero():
                logger.warning(f"{config.output_dir} holds this run, and it is finished: nothing to train or to save.")
            return
        _train_and_save(trainer, recipe, reward, splits, started, stop_behind)


def _train_and_save(
    trainer: PreferenceTrainer,
    recipe: Recipe,
    reward: Reward | None,
    splits: dict[str, Any],
    started: float,
    stop_behind: Sequence[Frontier],
) -> None:
    arguments, config = recipe.arguments, recipe.config
    if reward is None:
        metrics, comparison = _train(trainer), None
    else:
        prompts = held_out_prompts(splits["test"], trainer.processing_class, arguments.eval_prompts)
        metrics, comparison = _train_and_compare(trainer, recipe, reward, prompts, stop_behind)

    trainer.save_without_push(config.output_dir)
    if trainer.is_world_process_zero():
        save_outputs(trainer, metrics, comparison, recipe.settings, time.time() - started)
    if config.push_to_hub:
        address = trainer.push_to_hub()
        if trainer.is_world_process_zero():
            Console().print(f"Pushed: {address}", markup=False, highlight=False, soft_wrap=True)


def _train(trainer: PreferenceTrainer) -> dict[str, Any]:
    metrics: dict[str, Any] = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    return metrics


def _train_and_compare(
    trainer: PreferenceTrainer,
    recipe: Recipe,
    reward: Reward,
    prompts: list[TokenizedPrompt],
    stop_behind: Sequence[Frontier],
) -> tuple[dict[str, Any], Comparison]:
    """Sample, train, sample again; with `frontier_steps`, in between too."""
    arguments = recipe.arguments

    def evaluate(model: Any, reference: Reference | None) -> Evaluation:
        return evaluate_policy(
            model,
            trainer.processing_class,
            prompts,
            reward,
            reference=reference,
            max_new_tokens=arguments.eval_max_new_tokens,
            seed=arguments.eval_seed,
            progress=trainer.is_world_process_zero(),
        )

    first = EvaluateFirst(trainer, evaluate, trainer.reference if arguments.frontier_steps else None)
    frontier = None
    if arguments.frontier_steps:
        frontier = FrontierCallback(
            trainer.processing_class,
            prompts,
            reward,
            reward_name=str(arguments.reward),
            method=" + ".join(recipe.config.loss_type),
            reference=trainer.reference,
            every=arguments.frontier_steps,
            max_new_tokens=arguments.eval_max_new_tokens,
            seed=arguments.eval_seed,
            start=first,
        )
        trainer.add_callback(frontier)
        if stop_behind:
            trainer.add_callback(StopBehind(frontier, stop_behind))
    tracked = TrackSamples(trainer, frontier)
    trainer.add_callback(tracked)
    metrics = _train(trainer)
    after = None
    if frontier is not None and not recipe.config.load_best_model_at_end:  # which would load another step's weights
        after = frontier.after(trainer.state.global_step)
    after = after or evaluate(trainer.model, trainer.reference if trainer.has_reference else None)
    comparison = compare(first(), after)
    tracked.log_samples(comparison)
    return metrics, comparison
