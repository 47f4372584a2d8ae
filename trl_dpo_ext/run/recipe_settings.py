"""What a recipe says: its fields, parsed and checked before anything is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from trl import ModelConfig, ScriptArguments, get_peft_config

from ..data import get_converter
from ..evaluation import reward_forms
from ..parsing import ParseError
from ..secret_scan import without_secrets
from ..training import PreferenceConfig
from ..training.safety.checkpoint import asks_for_newest, newest_complete
from ..training.safety.output_folder import RESULT
from .mixture_settings import parse_mixture
from .pulled_recipes import RecipeParser
from .recipe_checks import check_recipe


@dataclass
class RecipeArguments(ScriptArguments):
    """The fields of a recipe besides those of `PreferenceConfig` and `trl.ModelConfig`.

    Args:
        dataset_name: Hub id, folder with train and test files, or one .json, .jsonl(.gz), .csv or .parquet file.
        dataset_converter: the converter that brings the dataset's columns into an accepted form, for example "nectar";
            see `trl_dpo_ext.data.converters`. None if they are in one already.
        columns: from the names of the dataset's columns to those of an accepted form, for example `{question: prompt}`;
            null leaves a column out. It comes before the converter.
        dataset_mixture: several datasets instead of `dataset_name`, each in a form of its own: `{datasets: [{path,
            name, split, test_split, fraction, columns, converter}, ...]}`; see docs/your_data.md.
        import_module: modules to import first, for example one that registers your own losses or converters.
        reward: the true reward of samples: a built-in one by name, a classifier or reward model (Hub id or folder),
            "package.module:function", or "endpoint:MODEL" for the grades of a judge. Without a reward, nothing is
            sampled.
        eval_prompts: number of held-out prompts sampled before and after training.
        eval_max_new_tokens: length of those samples, in tokens.
        eval_seed: seed of those samples, the same before and after.
        frontier_steps: number of optimizer steps between the samples during training whose reward and KL go into
            frontier.json; 0 takes none.
        overwrite_output_dir: train into a folder that holds a finished run.
        dry_run: say what the run would do, take two steps in memory, and stop; nothing is written or pushed.

    Raises:
        ParseError, RegistryError: a value that can't be used.
    """

    dataset_converter: str | None = field(
        default=None, metadata={"help": "Converter of the dataset's columns, for example nectar."}
    )
    columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Other names for the dataset's columns, for example {question: prompt}."}
    )
    dataset_mixture: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Several datasets instead of dataset_name: {datasets: [{path: ...}, ...]}."}
    )
    import_module: list[str] = field(default_factory=list, metadata={"help": "Modules to import first."})
    reward: str | None = field(
        default=None,
        metadata={"help": f"True reward of samples: {reward_forms()}."},
    )
    eval_prompts: int = field(default=64, metadata={"help": "Held-out prompts sampled before and after training."})
    eval_max_new_tokens: int = field(default=24, metadata={"help": "Length of those samples, in tokens."})
    eval_seed: int = field(default=0, metadata={"help": "Seed of those samples."})
    frontier_steps: int = field(
        default=0, metadata={"help": "Record reward and KL in frontier.json every so many optimizer steps; 0: never."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace a finished run."})
    dry_run: bool = field(
        default=False, metadata={"help": "Say what the run would do, take two steps in memory, and stop."}
    )

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
        self.columns = _column_names(self.columns)
        if self.dataset_converter is not None:
            get_converter(self.dataset_converter)
        if self.dataset_mixture:
            self._check_mixture()
        elif not self.dataset_name:
            raise ParseError("dataset_name is missing: give a Hub id, a folder, or a file.")
        if self.reward and self.eval_prompts < 2:
            raise ParseError(f"eval_prompts={self.eval_prompts}, but an interval needs at least 2 prompts.")
        if self.frontier_steps and not self.reward:
            raise ParseError(f"frontier_steps={self.frontier_steps} needs a reward to record; set reward as well.")

    def _check_mixture(self) -> None:
        for name in ("dataset_name", "dataset_config", "dataset_converter", "columns", "dataset_streaming"):
            if getattr(self, name):
                raise ParseError(
                    f"{name} and dataset_mixture are both set. Put it into the entries of dataset_mixture."
                )
        for dataset in parse_mixture(self.dataset_mixture):
            if dataset.converter is not None:
                get_converter(dataset.converter)


def _column_names(given: Any) -> dict[str, str | None]:
    if isinstance(given, str):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise ParseError(f"columns={given!r} is no mapping ({error}).") from None
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(
        isinstance(column, str) and isinstance(name, str | None) for column, name in given.items()
    ):
        raise ParseError(f"columns={given!r} must map column names to names, for example {{question: prompt}}.")
    return given


class Recipe(NamedTuple):
    """A parsed recipe.

    Attributes:
        arguments: dataset and evaluation.
        config: training.
        model: the model, its quantization and adapter.
        settings: all settings that differ from their defaults; as a YAML file they give this run again.
    """

    arguments: RecipeArguments
    config: PreferenceConfig
    model: ModelConfig
    settings: dict[str, Any]


def parse_recipe(args: Sequence[str] | None = None) -> Recipe:
    """Parse and check a recipe and the options that override it.

    Args:
        args: `--config FILE` and options; None takes those of the command line.

    Raises:
        ParseError: a setting that is unknown, missing or can't be used.
        FileExistsError: `output_dir` is a file or holds a finished run.
    """
    if not torch.accelerator.is_available():
        # Accelerate's launcher doesn't pass `use_cpu` on to its processes where there are several.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    parser = RecipeParser((RecipeArguments, PreferenceConfig, ModelConfig))
    try:
        arguments, config, model = parser.parse_args_and_config(args)
    except ValueError as error:  # whatever the dataclasses refuse, TRL's own included
        raise ParseError(str(error)) from error
    except ImportError as error:
        if "deepspeed" in str(error).lower():
            raise ParseError("deepspeed is set, but its package isn't installed: pip install deepspeed.") from error
        raise
    if (launched := int(os.environ.get("WORLD_SIZE", "1"))) != config.world_size:
        raise ParseError(
            f"{launched} processes were launched, but each one sees {config.world_size}: they would train apart. "
            "To train on the CPU where there is a GPU, set ACCELERATE_USE_CPU=true."
        )
    if not model.model_name_or_path:
        raise ParseError("model_name_or_path is missing: give a Hub id or a folder.")
    _check_output(config, arguments.overwrite_output_dir)
    if not isinstance(config.model_init_kwargs or {}, dict):
        raise ParseError(f"model_init_kwargs={config.model_init_kwargs!r} must be a mapping.")
    check_recipe(arguments, config, model, parser.named)
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    return Recipe(arguments, config, model, without_secrets(parser.given))


def adapter_config(model: ModelConfig) -> Any:
    """Return the adapter's configuration, or None without `use_peft`."""
    peft_config: Any = get_peft_config(model)
    if peft_config is not None and isinstance(name := peft_config.target_modules, str) and name.isidentifier():
        # TRL turns a list of one into a string, which PEFT reads as a pattern for whole module paths.
        peft_config.target_modules = {name}
    return peft_config


def _check_output(config: PreferenceConfig, overwrite: bool) -> None:
    output = Path(str(config.output_dir))
    if output.is_file():
        raise FileExistsError(f"output_dir={config.output_dir!r} is a file; name a folder, new or not.")
    goes_on = asks_for_newest(config.resume_from_checkpoint) and newest_complete(output) is not None
    if (output / RESULT).exists() and not overwrite and not goes_on:
        raise FileExistsError(
            f"{output} holds a finished run ({RESULT}). Choose another output_dir, or set "
            "overwrite_output_dir: true to replace it."
        )
