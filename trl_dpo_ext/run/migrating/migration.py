"""A config on its way to a recipe: keys are taken from one side and put on the other, and notes say what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig

from ...data import list_converters
from ...parsing import ParseError
from ...renamed_settings import hint
from ...training import PreferenceConfig
from ..recipe_settings import RecipeArguments


class MigrationError(ParseError):
    """A config that can't become a recipe. The message names the key and what to do."""


def recipe_keys() -> set[str]:
    """Return all keys that a recipe may have."""
    return {f.name for kind in (RecipeArguments, PreferenceConfig, ModelConfig) for f in fields(kind) if f.init}


@dataclass
class Migration:
    """A config on its way to a recipe.

    Attributes:
        path: the config's file.
        source: the trainer that it is for.
        left: its keys that nothing has taken yet.
        recipe: the recipe so far.
        notes: a sentence for each key without a counterpart or with another meaning or default.
    """

    path: Path
    source: str
    left: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, *names: str, default: Any = None) -> Any:
        """Remove keys, and return the value of the first that is set."""
        values = [self.left.pop(name) for name in names if name in self.left]
        return next((value for value in values if value is not None), default)

    def put(self, key: str, value: Any) -> None:
        """Set a key of the recipe, unless the value is None."""
        if value is not None:
            self.recipe[key] = value

    def rename(self, names: Mapping[str, str]) -> None:
        """Take keys under their old names and put them under the new ones."""
        for old, new in names.items():
            self.put(new, self.take(old))

    def other_defaults(self, values: Mapping[str, Any]) -> None:
        """Write out defaults of the other trainer that differ from a recipe's."""
        for key, value in values.items():
            if key not in self.recipe:
                self.recipe[key] = value
                self.notes.append(f"{key} wasn't set: {self.source}'s default, {value}, is written out.")

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Take keys that have no counterpart, and note why, unless they are unset."""
        for name, reason in reasons.items():
            if (value := self.take(name)) not in (None, False, [], {}):
                self.notes.append(f"{name}: {_short(value)} is left out. {reason}")

    def ignore(self, *names: str) -> None:
        """Take keys that change nothing about the training, such as paths of another trainer's caches."""
        self.take(*names)

    def mix_with_sft(self, weight: float) -> None:
        """Add the likelihood of the chosen response with a weight (RPO)."""
        losses = self.recipe.get("loss_type", "sigmoid")
        losses = [losses] if isinstance(losses, str) else list(losses)
        weights = self.recipe.get("loss_weights") or [1.0] * len(losses)
        self.recipe |= {"loss_type": [*losses, "sft"], "loss_weights": [*weights, float(weight)]}

    def finish(self) -> None:
        """Copy the keys that a recipe has too, and note the rest."""
        known = recipe_keys()
        for name in list(self.left):
            value = self.left.pop(name)
            if name in known and name not in self.recipe:
                self.put(name, value)
            elif value not in (None, False, [], {}):
                advice = hint(name) or " A recipe has no such key."
                self.notes.append(f"{name}: {_short(value)} is left out.{advice}")
        self._find_converter()
        if "dataset_name" not in self.recipe:
            self.notes.append("dataset_name is missing: name a Hub id, a folder or a file before you train.")

    def _find_converter(self) -> None:
        name = self.recipe.get("dataset_name")
        found = [converter.name for converter in list_converters() if name is not None and converter.dataset == name]
        if len(found) == 1 and "dataset_converter" not in self.recipe:
            self.put("dataset_converter", found[0])
        elif found:
            self.notes.append(f"Choose a dataset_converter for {name}: {' or '.join(found)}.")

    def as_yaml(self) -> str:
        """Return the recipe as YAML, with the notes as comments above it."""
        header = [f"# From {self.path.name}, a config of {self.source}.", *(f"# - {note}" for note in self.notes), ""]
        return "\n".join(header) + yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
