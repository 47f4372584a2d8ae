"""`trl-dpo-ext recipes`: list the recipes that come with the package, show one, or copy one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._console import Commands, console


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("recipes", help="list the package's recipes, show one, or copy one")
    command.add_argument("name", nargs="?", help="show this recipe, for example llama-3.1-8b/dpo")
    command.add_argument(
        "--copy", type=Path, metavar="FOLDER", help="copy the recipe, and data of its own, to FOLDER/recipes"
    )
    command.set_defaults(run=_recipes)


def _recipes(arguments: argparse.Namespace) -> int:
    from ..run.recipe_files import copy_recipe, find_recipe

    if arguments.name is None:
        if arguments.copy is not None:
            raise ValueError("--copy needs the name of a recipe. `trl-dpo-ext recipes` lists them.")
        _list()
        return 0
    recipe = find_recipe(arguments.name)
    out = console()
    if arguments.copy is None:
        out.print(recipe.path.read_text(encoding="utf-8"), markup=False, end="", soft_wrap=True)
        return 0
    for path in copy_recipe(recipe, arguments.copy):
        out.print(str(path), markup=False, soft_wrap=True)
    return 0


def _list() -> None:
    from rich.table import Table
    from rich.text import Text

    from ..run.recipe_files import list_recipes

    table = Table("name", "loss", "model", "data", "needs", box=None, pad_edge=False, header_style="bold")
    recipes = list_recipes()
    for recipe in recipes:
        keys = ("loss_type", "model_name_or_path", "dataset_name")
        table.add_row(
            recipe.name, *(Text(str(recipe.settings[key])) for key in keys), Text(recipe.needs.partition(";")[0])
        )
    out = console()
    out.print(table)
    out.print(f"\n{len(recipes)} recipes. `trl-dpo-ext train --config NAME` trains one.", markup=False)
