"""`dry_run`: all that comes before training and two steps of it, said on one screen; nothing is written or pushed."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from huggingface_hub import get_token
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import get_quantization_config

from ..data.lint.row_view import row_as_trained
from ..data.prompts import held_out_prompts
from ..memory import UnknownModelError, estimate, make_setup, most_responses
from ..memory.peak_estimate import GIB
from ..training import PreferenceTrainer
from ..training.publish import check_push
from .recipe_checks import check_loaded
from .recipe_settings import Recipe, adapter_config

_STEPS = 2
_MOST_LINES = 12  # of a shown prompt or response


def dry_run(recipe: Recipe, splits: dict[str, Any]) -> None:
    """Load the model, take two steps in memory, and print what the run would do.

    Args:
        recipe: as parsed. Its configuration is changed; it can't train afterwards.
        splits: its datasets.

    Raises:
        USER_ERRORS: what would stop the run stops this one.
    """
    config = recipe.config
    output, stored = str(config.output_dir), config.precompute_ref_log_probs
    check_push(recipe.model.model_name_or_path, config)
    pushes, evaluation = list(_pushes(config)), list(_evaluation(recipe))
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        config.precompute_ref_log_probs = False  # a pass over all data
        config.report_to, config.push_to_hub = [], False  # transformers makes the repository at once
        trainer: Any = PreferenceTrainer(
            model=recipe.model.model_name_or_path,
            args=config,
            train_dataset=splits["train"],
            eval_dataset=splits["test"] if config.eval_strategy != "no" else None,
            quantization_config=get_quantization_config(recipe.model),
            peft_config=adapter_config(recipe.model),
        )
        # A run that stores the reference's log-probs keeps no second model, unlike this one.
        kept = trainer.has_reference and (recipe.model.use_peft or not stored)
        check_loaded(recipe, trainer.train_dataset, has_reference=kept)
        if recipe.arguments.reward:
            held_out_prompts(splits["test"], trainer.processing_class, recipe.arguments.eval_prompts)
        steps = trainer.planned_steps()
        seconds = _seconds_of_a_step(trainer)
    if not trainer.is_world_process_zero():
        return
    out = Console()
    for title, lines in {
        "Data": _data(trainer, splits, recipe),
        "Losses": _losses(config),
        "Reference": _reference(trainer, stored),
        "Rows": [trainer.data_collator.layout.note],
        "Memory": _memory(recipe, splits),
        "Steps": _steps(trainer, steps, seconds),
        "Evaluation": evaluation,
        "Output": [
            f"{output}: the {'adapter' if recipe.model.use_peft else 'model'}, its record.",
            *pushes,
        ],
    }.items():
        out.print(f"\n{title}", style="bold")
        for line in lines:
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print("\nDry run: nothing was written or pushed.", markup=False)


def _data(trainer: Any, splits: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    for name, rows in (("train", trainer.train_dataset), ("test", trainer.eval_dataset)):
        if isinstance(rows, Dataset):
            yield f"{name}: {len(rows):,} prompts with {sum(map(len, rows['ranks'])):,} responses."
        elif rows is not None:
            yield f"{name}: streamed, so its rows aren't counted."
    yield from trainer.data_findings.lines()
    if isinstance(splits["train"], Dataset):
        shown = row_as_trained(
            splits["train"], 0, trainer.processing_class, name="train", max_length=recipe.config.max_length
        )
        for block in shown:
            lines = block.splitlines() or [""]
            yield from (f"  {line}" for line in lines[:_MOST_LINES])
            if len(lines) > _MOST_LINES:
                yield f"  ... {len(lines) - _MOST_LINES} more lines"


def _losses(config: Any) -> Iterator[str]:
    for term in config.objective().terms:
        values = ", ".join(f"{name} {value}" for name, value in term.hyperparameters.items()) or "no hyperparameters"
        yield f"{term.spec.name}, weight {term.weight:g}: {values}."


def _reference(trainer: Any, stored: bool) -> Iterator[str]:
    if not trainer.objective.reads_reference:
        yield "none: no loss reads it."
        return
    if trainer.ref_model is None:
        yield "the model without the trained adapter."
    else:
        yield f"the weights that training begins with{'' if stored else ', as a second model in memory'}."
    if stored:
        yield "Its log-probs would be computed before the first step and stored; the steps below computed them online."


def _memory(recipe: Recipe, splits: dict[str, Any]) -> Iterator[str]:
    try:
        with warnings.catch_warnings():  # transformers renames its own attributes
            warnings.simplefilter("ignore", FutureWarning)
            found = estimate(make_setup(recipe.config, recipe.model, responses=most_responses(splits["train"])))
    except UnknownModelError as error:
        yield f"not estimated: {error}"
        return
    largest = ", ".join(f"{part} {size / GIB:.2f}" for part, size in found.parts.most_common(3))
    yield f"about {found.total / GIB:.2f} GiB on a GPU, estimated for rows of max_length. Largest, GiB: {largest}."


def _steps(trainer: Any, steps: int, seconds: float) -> Iterator[str]:
    args, rows = trainer.args, trainer.train_dataset
    prompts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    yield f"{steps:,} steps of {prompts} prompts."
    if isinstance(rows, Dataset):
        tokens = sum(map(len, rows["prompt_ids"])) + sum(len(ids) for one in rows["completion_ids"] for ids in one)
        yield f"{tokens:,} tokens in an epoch, each prompt counted once."
    yield f"{seconds:.2f} s for the second step on {args.device}: about {_duration(seconds * steps)} in all."


def _evaluation(recipe: Recipe) -> Iterator[str]:
    arguments, config = recipe.arguments, recipe.config
    if config.eval_strategy != "no":
        yield f"loss and metrics on the test split, eval_strategy: {getattr(config.eval_strategy, 'value', 'steps')}."
    if arguments.reward:
        yield f"{arguments.reward} reward of samples of {arguments.eval_prompts} prompts, before and after training."
    if config.eval_strategy == "no" and not arguments.reward:
        yield "none (eval_strategy: no, and no reward)."


def _duration(seconds: float) -> str:
    """Return a time in words.

    >>> [_duration(seconds) for seconds in (5.4, 200, 9000)]
    ['5 s', '3.3 min', '2.5 h']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _pushes(config: Any) -> Iterator[str]:
    if not config.push_to_hub:
        yield "Nothing is pushed to the Hub (push_to_hub: false)."
        return
    kind = {True: "private", False: "public"}.get(config.hub_private_repo, "private or public, as your account has it")
    strategy = str(getattr(config.hub_strategy, "value", config.hub_strategy))
    yield f"Pushed to {config.hub_model_id} ({kind}), hub_strategy: {strategy}."
    if not (config.hub_token or get_token()):
        yield "No access token was found: log in with `hf auth login`, or set HF_TOKEN."


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def _seconds_of_a_step(trainer: PreferenceTrainer) -> float:
    """Train for two steps in memory, and return the seconds of the second; the first one also warms up."""
    args, clock = trainer.args, _Clock()
    args.max_steps, args.save_strategy, args.eval_strategy = _STEPS, "no", "no"
    args.resume_from_checkpoint, args.load_best_model_at_end, args.eval_on_start = None, False, False
    # Two steps of a warm-up may be too small to change 16-bit weights, which is no error here.
    for callback in (trainer.guard, PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.ends[-1] - clock.ends[-2] if len(clock.ends) > 1 else float("nan")
