"""A run from a recipe: parse and check it, load the data, evaluate, train, evaluate again, save."""

from ..data.prompts import held_out_prompts
from .recipe_settings import Recipe, RecipeArguments, adapter_config, parse_recipe
from .training_run import train_recipe
from .user_errors import FAILURES, USER_ERRORS

__all__ = [
    "FAILURES",
    "USER_ERRORS",
    "Recipe",
    "RecipeArguments",
    "adapter_config",
    "held_out_prompts",
    "parse_recipe",
    "train_recipe",
]
