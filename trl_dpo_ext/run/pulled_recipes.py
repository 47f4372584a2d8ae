"""Recipes that came with a model: they name code, but never run it by themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..parsing import StrictParser, raise_all
from ..strict_yaml import YamlMapping

# What stands beside a recipe that came with a model, or with the record of a run.
_OF_A_MODEL = ("adapter_config.json", "config.json", "result.json", "reference.json", "merge.json")


class RecipeParser(StrictParser):
    """A strict parser of recipes that refuses those that came with a model and would run code."""

    def take(self, file: YamlMapping, *, source: str) -> None:
        """Take the settings of a recipe; see `StrictParser.take`."""
        raise_all(f"in {source}", code_that_would_run(Path(source), file.values, self.named))
        super().take(file, source=source)


def code_that_would_run(recipe: Path, settings: Mapping[str, Any], on_command_line: Collection[str]) -> list[str]:
    """Return a sentence for each setting that would run code because a pulled recipe says so.

    A recipe is pulled if a model or a run's record lies in its folder: a snapshot of the Hub does, and so does the
    folder of a finished run. There, settings that run code count only if the command line gives them. A recipe in any
    other place is the user's own.

    Args:
        recipe: the file.
        settings: its content.
        on_command_line: names of the settings that the command line gives.
    """
    # A file in the Hub's cache is a link.
    beside = {
        name for place in {recipe.parent, recipe.resolve().parent} for name in _OF_A_MODEL if (place / name).exists()
    }
    if not beside:
        return []
    reward = settings.get("reward")
    found = {
        "import_module": settings.get("import_module"),
        "reward": reward if isinstance(reward, str) and ":" in reward and not reward.startswith("endpoint:") else None,
        "trust_remote_code": settings.get("trust_remote_code"),
        "model_init_kwargs": init if "trust_remote_code" in str(init := settings.get("model_init_kwargs")) else None,
        "env": settings.get("env"),
    }
    return [
        f"{recipe} came with a model or a run ({min(beside)} lies beside it), and its {name}: {value!r} would run code "
        + (
            "or change how programs run. Remove env, and set what you need yourself."
            if name == "env"
            else f"from elsewhere. If you trust it, give --{name} on the command line."
        )
        for name, value in found.items()
        if value and name not in on_command_line
    ]
