"""Reads a recipe for the memory estimate: as strictly as a run does, but without its data, card or processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from trl import ModelConfig

from ..memory import Setup, make_setup
from ..parsing import ParseError, StrictParser
from ..training import PreferenceConfig
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
        content = yaml.safe_load(recipe_path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ParseError(f"The recipe {path!r} can't be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ParseError(f"The recipe {path!r} holds no settings: write one `key: value` a line.")
    parser = StrictParser((RecipeArguments, PreferenceConfig, ModelConfig))
    # The estimate needs no dataset, and this machine may not have the recipe's card.
    parser.set_defaults_with_config(**{"dataset_name": "none", **content, **(changes or {}), "use_cpu": True})
    try:
        _, args, model_args = parser.parse_args_into_dataclasses(args=[])
    except ValueError as error:
        raise ParseError(str(error)) from error
    if not model_args.model_name_or_path:
        raise ParseError("model_name_or_path is missing. Set it to a Hub id or a folder, or pass --model.")
    return make_setup(args, model_args, responses=responses, prompt_tokens=prompt_tokens), model_args.model_name_or_path
