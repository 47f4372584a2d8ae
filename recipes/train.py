"""Train a model on preferences, from a YAML recipe.

    accelerate launch --config_file recipes/accelerate/cpu.yaml \
        recipes/train.py --config recipes/quickstart/plackett_luce.yaml

Any field of RecipeArguments, trl_dpo_ext.PreferenceConfig and trl.ModelConfig is a key of the YAML file and an option
here; options win. The output folder receives the adapter (or model), the tokenizer, recipe.yaml, result.json,
curves.png and a model card, README.md.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import IterableDataset
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_dpo_ext import PreferenceConfig, PreferenceTrainer
from trl_dpo_ext.data import DataError, convert_dataset, format_dataset, get_converter, load_splits
from trl_dpo_ext.evaluation import (
    Comparison,
    Evaluation,
    FrontierCallback,
    FrontierError,
    RewardError,
    compare,
    evaluate_policy,
    get_reward,
    prompt_text,
)
from trl_dpo_ext.evaluation.plots import plot_curves
from trl_dpo_ext.hub import PushError, RunError
from trl_dpo_ext.memory import DoesNotFitError, explain_out_of_memory, most_responses
from trl_dpo_ext.memory import fit_check as check_fits
from trl_dpo_ext.parsing import ParseError, StrictParser
from trl_dpo_ext.reference import CacheError, ReferenceMismatchError
from trl_dpo_ext.training import CheckpointError, ConfigError, DiskSpaceError, ModelFolderError, TrainingError, sharding

RESULT = "result.json"
USER_ERRORS = (
    ConfigError,
    DataError,
    ParseError,
    RewardError,
    FrontierError,
    DiskSpaceError,
    DoesNotFitError,
    CacheError,
    ModelFolderError,
    FileExistsError,
    FileNotFoundError,
    CheckpointError,
    ReferenceMismatchError,
    TrainingError,
    PushError,
    RunError,
)


@dataclass
class RecipeArguments(ScriptArguments):
    """What a recipe says besides the training configuration and the model.

    Args:
        dataset_name: Hub id, folder with train and test files, or one .json, .jsonl(.gz), .csv or .parquet file.
        dataset_converter: what brings the dataset's columns into an accepted form, for example "nectar"; see
            trl_dpo_ext.data.converters. None where they are in one already.
        import_module: modules imported first, for example one that registers your own losses or converters.
        reward: the true reward of samples, "vader", a classifier or reward model (Hub id or folder),
            "package.module:function", or "endpoint:MODEL" for grades of a judge; without one nothing is sampled.
        eval_prompts: held-out prompts sampled before and after training.
        eval_max_new_tokens: length of those samples, in tokens.
        eval_seed: seed of those samples, the same before and after.
        frontier_steps: optimizer steps between samples during training, whose reward and KL go into frontier.json; 0
            takes none.
        overwrite_output_dir: train into a folder that holds a finished run.
    """

    dataset_converter: str | None = field(
        default=None, metadata={"help": "Converter of the dataset's columns, for example nectar."}
    )
    import_module: list[str] = field(default_factory=list, metadata={"help": "Modules to import first."})
    reward: str | None = field(
        default=None,
        metadata={"help": "True reward: vader, a reward model, package.module:function, or endpoint:MODEL."},
    )
    eval_prompts: int = field(default=64, metadata={"help": "Held-out prompts sampled before and after training."})
    eval_max_new_tokens: int = field(default=24, metadata={"help": "Length of those samples, in tokens."})
    eval_seed: int = field(default=0, metadata={"help": "Seed of those samples."})
    frontier_steps: int = field(
        default=0, metadata={"help": "Record reward and KL every so many optimizer steps into frontier.json; 0: never."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace a finished run."})

    def __post_init__(self) -> None:
        # The parser builds this before PreferenceConfig, so that losses registered here are known to it.
        sys.path.insert(0, str(Path.cwd()))
        for name in self.import_module:
            try:
                import_module(name)
            except ModuleNotFoundError as error:
                raise ParseError(
                    f"import_module: can't import {name!r} ({error}); looked for it in {Path.cwd()} and on PYTHONPATH."
                ) from None
        if self.dataset_converter is not None:
            get_converter(self.dataset_converter)
        if not self.dataset_name:
            raise ParseError("dataset_name is missing: give a Hub id, a folder, or a file.")
        if self.reward and self.eval_prompts < 2:
            raise ParseError(f"eval_prompts={self.eval_prompts}, but an interval needs at least 2 prompts.")
        if self.frontier_steps < 0:
            raise ParseError(
                f"frontier_steps={self.frontier_steps} is out of range, expected >= 0; 0 takes no samples."
            )
        if self.frontier_steps and not self.reward:
            raise ParseError(f"frontier_steps={self.frontier_steps} needs a reward to record; set reward as well.")


def held_out_prompts(dataset: Any, tokenizer: Any, count: int) -> list[str]:
    """Return the first prompts of the test split as text, conversations through the chat template."""
    streams = isinstance(dataset, IterableDataset)
    first = dataset.take(count) if streams else dataset.select(range(min(count, len(dataset))))
    rows = format_dataset(first, name="test", invalid_rows="drop")
    return [prompt_text(row["prompt"], tokenizer) for row in rows]


def parse(args: list[str] | None = None) -> tuple[RecipeArguments, PreferenceConfig, ModelConfig, dict[str, Any]]:
    """Parse the recipe and the options; the last result is the recipe that gives this run again."""
    if not torch.accelerator.is_available():
        # Of several processes, accelerate's launcher doesn't tell that `use_cpu` is set.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    parser = StrictParser((RecipeArguments, PreferenceConfig, ModelConfig))
    try:
        recipe, config, model_args = parser.parse_args_and_config(args)
    except ValueError as error:  # whatever the dataclasses refuse, TRL's own included
        raise ParseError(str(error)) from error
    if (launched := int(os.environ.get("WORLD_SIZE", "1"))) != config.world_size:
        raise ParseError(
            f"{launched} processes were launched, but each one sees {config.world_size}: they would train apart. "
            "To train on the CPU where there is a GPU, set ACCELERATE_USE_CPU=true."
        )
    if not model_args.model_name_or_path:
        raise ParseError("model_name_or_path is missing: give a Hub id or a folder.")
    if Path(config.output_dir).is_file():
        raise FileExistsError(f"output_dir={config.output_dir!r} is a file; name a folder, new or not.")
    if (Path(config.output_dir) / RESULT).exists() and not recipe.overwrite_output_dir:
        raise FileExistsError(
            f"{config.output_dir} holds a finished run ({RESULT}). Choose another output_dir, or set "
            "overwrite_output_dir: true to replace it."
        )
    config.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(config.model_init_kwargs or {}),
    }
    return recipe, config, model_args, {k: v for k, v in parser.given.items() if k != "hub_token"}


def adapter_config(model_args: ModelConfig) -> Any:
    """Return the adapter's configuration, or None without `use_peft`."""
    peft_config: Any = get_peft_config(model_args)
    if peft_config is not None and isinstance(name := peft_config.target_modules, str) and name.isidentifier():
        # TRL makes a list of one a string, and PEFT takes a string for a pattern of whole names.
        peft_config.target_modules = {name}
    return peft_config


def main(args: list[str] | None = None) -> None:
    """Run a recipe; where the GPU's memory runs out, say in what, and what to change."""
    try:
        run(args)
    except torch.OutOfMemoryError as error:
        raise explain_out_of_memory(error) from error


def run(args: list[str] | None = None) -> None:
    """Parse, check, evaluate, train, evaluate again, save."""
    started = time.time()
    recipe, config, model_args, settings = parse(args)
    reward = get_reward(recipe.reward) if recipe.reward else None
    if reward is not None and (sharded := sharding(config)):
        raise ConfigError(f"reward samples from the model, which {sharded} has in parts. Remove reward, or use DDP.")
    dataset = load_splits(
        str(recipe.dataset_name),
        config=recipe.dataset_config,
        streaming=recipe.dataset_streaming,
        needs=recipe.dataset_train_split,
    )
    splits = {"train": dataset[recipe.dataset_train_split]}
    for option, used in (("reward", reward is not None), ("eval_strategy", config.eval_strategy != "no")):
        if used and recipe.dataset_test_split not in dataset:
            raise DataError(
                f"{option} is set, but there is no split {recipe.dataset_test_split!r}; the dataset has: "
                f"{', '.join(dataset)}. Name one in dataset_test_split."
            )
        if used:
            splits["test"] = dataset[recipe.dataset_test_split]
    if recipe.dataset_converter is not None:
        with config.main_process_first(desc="converting the dataset"):
            for name, split in splits.items():
                splits[name] = convert_dataset(
                    split,
                    recipe.dataset_converter,
                    name=name,
                    invalid_rows=config.invalid_rows,
                    num_proc=config.dataset_num_proc,
                )
    check_fits(config, model_args, responses=most_responses(splits["train"]))
    trainer = PreferenceTrainer(
        model=model_args.model_name_or_path,
        args=config,
        train_dataset=splits["train"],
        eval_dataset=splits["test"] if config.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=adapter_config(model_args),
    )

    if recipe.frontier_steps and not trainer.has_reference:
        raise ConfigError(
            f"frontier_steps={recipe.frontier_steps} measures the KL to the reference, but this run keeps none in "
            "memory: it trains all weights, and no loss reads a reference or its log-probs are computed beforehand. "
            "Train an adapter (use_peft: true), set precompute_ref_log_probs: false, or set frontier_steps: 0."
        )

    def evaluate(reference: Any = None) -> Evaluation:
        return evaluate_policy(
            trainer.model,
            trainer.processing_class,
            prompts,
            reward,
            reference=reference,
            max_new_tokens=recipe.eval_max_new_tokens,
            seed=recipe.eval_seed,
            progress=trainer.is_world_process_zero(),
        )

    frontier = None
    if reward is not None:
        prompts = held_out_prompts(splits["test"], trainer.processing_class, recipe.eval_prompts)
        before = evaluate(trainer.reference if recipe.frontier_steps else None)
        if recipe.frontier_steps:
            frontier = FrontierCallback(
                trainer.processing_class,
                prompts,
                reward,
                reward_name=str(recipe.reward),
                method=" + ".join(config.loss_type),
                reference=trainer.reference,
                every=recipe.frontier_steps,
                max_new_tokens=recipe.eval_max_new_tokens,
                seed=recipe.eval_seed,
                start=before,
            )
            trainer.add_callback(frontier)
    result = trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    comparison = None
    if reward is not None:
        after = None
        if frontier is not None and not config.load_best_model_at_end:  # else the weights are those of another step
            after = frontier.after(trainer.state.global_step)
        comparison = compare(before, after or evaluate(trainer.reference if trainer.has_reference else None))

    trainer.save_model(config.output_dir, _internal_call=True)  # or it would be pushed already, without its record
    if trainer.is_world_process_zero():
        save_record(trainer, result.metrics, comparison, settings, time.time() - started)
    if config.push_to_hub:
        address = trainer.push_to_hub()
        if trainer.is_world_process_zero():
            print(f"Pushed: {address}")


def save_record(
    trainer: PreferenceTrainer,
    metrics: dict[str, Any],
    comparison: Comparison | None,
    settings: dict[str, Any],
    seconds: float,
) -> None:
    """Write recipe.yaml, curves.png and, last because it marks the run as finished, result.json; print the table."""
    output = Path(trainer.args.output_dir)
    history = trainer.state.log_history
    (output / "recipe.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    plot_curves(history, output / "curves.png", " + ".join(trainer.args.loss_type), comparison)
    trainer.save_record(
        metrics={**next((entry for entry in reversed(history) if "loss" in entry), {}), **metrics},
        evaluation=comparison and comparison.as_dict(),
        recipe=settings,
        seconds=round(seconds, 1),
    )
    if comparison is not None:
        comparison.print()
    print(f"\nSaved to {output}: the model or adapter, tokenizer, recipe.yaml, curves.png, {RESULT}.")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if os.environ.get("RANK", "0") == "0":
        # Which reference the run has, how rows are laid out, what was found in the cache.
        logging.getLogger("trl_dpo_ext").setLevel(logging.INFO)
    try:
        main()
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
