"""Reads a recipe for the memory estimate: as strictly as a run does, but without its data, card or processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl import ModelConfig

from ..memory import Setup, make_setup
from ..parsing import ParseError
from ..strict_yaml import YamlError, YamlMapping, read_yaml
from ..training import PreferenceConfig
from .pulled_recipes import RecipeParser
from .recipe_files import recipe_path
from .recipe_settings import RecipeArguments


def read_memory_setup(
    path: str,
    changes: Mapping[str, Any] | None = None,
    *,
    responses: int = 2,
    prompt_tokens: int | None = None,
) -> tuple[Setup, str]:
    """Read the settings of a recipe that decide its memory.

    Args:
        path: the YAML file, or the name of one of the package's recipes.
        changes: settings that replace the recipe's.
        responses, prompt_tokens: see `make_setup`.

    Returns:
        The setup and the model's name.

    Raises:
        ParseError, ConfigError, UnknownModelError: the recipe can't be trained or estimated.
    """
    try:
        file = read_yaml(recipe_path(path))
    except YamlError as error:
        raise ParseError(f"The recipe can't be read. {error}") from None
    parser = RecipeParser((RecipeArguments, PreferenceConfig, ModelConfig))
    parser.set_defaults(dataset_name="none")  # the estimate needs no dataset
    kept = {name: value for name, value in file.values.items() if name not in (changes or {})}
    parser.take(YamlMapping(kept, file.lines, file.texts), source=str(recipe_path(path)))
    # This machine may not have the recipe's card.
    parser.take(YamlMapping({**(changes or {}), "use_cpu": True}), source="the changes")
    try:
        _, args, model_args = parser.parse_args_into_dataclasses(args=[], look_for_args_file=False)
    except ValueError as error:
        raise ParseError(str(error)) from error
    if not model_args.model_name_or_path:
        raise ParseError("model_name_or_path is missing. Set it to a Hub id or a folder, or pass --model.")
    return make_setup(args, model_args, responses=responses, prompt_tokens=prompt_tokens), model_args.model_name_or_path
