"""The recipes and hardware configs that come with the package: found by name, listed, copied."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..parsing import ParseError
from ..registry import did_you_mean
from ..strict_yaml import read_yaml

_PACKAGE = Path(__file__).parents[1]
# A recipe names its own data from the root of the repository.
_PREFIX = "recipes/"


def recipes_folder() -> Path:
    """Return the folder of the recipes: inside an installed wheel, or beside the package in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that comes with the package.

    Attributes:
        name: folder and file without its ending, such as "llama-3.1-8b/dpo".
        path: where the file is.
    """

    name: str
    path: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The keys of the file."""
        return read_yaml(self.path).values

    @property
    def needs(self) -> str:
        """The line of its header that says which hardware it is meant for."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return next((line.removeprefix("# Needs:").strip() for line in lines if line.startswith("# Needs:")), "")


def list_recipes() -> list[RecipeFile]:
    """Return all recipes for preference training, ordered by name."""
    root = recipes_folder()
    files = [
        RecipeFile(path.relative_to(root).with_suffix("").as_posix(), path) for path in sorted(root.glob("*/*.yaml"))
    ]
    return [file for file in files if "loss_type" in file.settings]


def find_recipe(name: str) -> RecipeFile:
    """Return a packaged recipe by name, with or without ".yaml".

    Raises:
        ParseError: there is none; the message names the nearest.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    if (found := recipes.get(name.removesuffix(".yaml"))) is None:
        raise ParseError(
            f"The recipe {name!r} does not exist: there is no such file, and the package has none of this name."
            f"{did_you_mean(name, recipes)} `trl-dpo-ext recipes` lists them."
        )
    return found


def recipe_path(name: str) -> Path:
    """Return a recipe's file: the path itself if there is one, else the packaged recipe of this name.

    Raises:
        ParseError: there is neither.
    """
    return path if (path := Path(name)).exists() else find_recipe(name).path


def resolve_config(args: list[str]) -> list[str]:
    """Return a run's arguments with the name of a packaged recipe replaced by its file and the paths of its data.

    A file that exists wins over a packaged recipe of that name, and an option over the recipe.

    Args:
        args: `--config FILE_OR_NAME` and options.

    Raises:
        ParseError: the config is neither a file nor a packaged recipe.
    """
    args = [part for a in args for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    if "--config" not in args[:-1]:
        return args
    at = args.index("--config") + 1
    if Path(args[at]).exists():
        return args
    recipe = find_recipe(args[at])
    return [*args[:at], str(recipe.path), *_own_paths(recipe, args), *args[at + 1 :]]


def _own_paths(recipe: RecipeFile, args: list[str]) -> list[str]:
    options: list[str] = []
    for key, value in recipe.settings.items():
        given = any(a == f"--{key}" or a.startswith(f"--{key}=") for a in args)
        if isinstance(value, str) and value.startswith(_PREFIX) and not given:
            options += [f"--{key}", str(recipes_folder() / value.removeprefix(_PREFIX))]
    return options


def find_accelerate_config(name: str) -> Path:
    """Return an accelerate config: a file, or one of the package by name, such as "fsdp2".

    Raises:
        ParseError: there is none; the message names the nearest.
    """
    if (path := Path(name)).is_file():
        return path
    known = {path.stem: path for path in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}
    if name not in known:
        raise ParseError(
            f"accelerate_config={name!r} is neither a file nor one of the package's.{did_you_mean(name, known)} "
            f"The package has: {', '.join(known)}."
        )
    return known[name]


def copy_recipe(recipe: RecipeFile, folder: Path) -> list[Path]:
    """Copy a recipe, and the data that it names, to the same places below `folder`/recipes; return what was written.

    Raises:
        FileExistsError: one of them is there already.
    """
    root = recipes_folder()
    own = [value for value in recipe.settings.values() if isinstance(value, str) and value.startswith(_PREFIX)]
    sources = [recipe.path, *(root / value.removeprefix(_PREFIX) for value in own)]
    targets = {source: folder / _PREFIX / source.relative_to(root) for source in sources}
    if taken := [target for target in targets.values() if target.exists()]:
        raise FileExistsError(f"{taken[0]} exists already. Nothing was copied; choose another folder.")
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    return list(targets.values())
