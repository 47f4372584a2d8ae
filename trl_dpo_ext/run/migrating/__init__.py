"""Turn the config of another trainer into a recipe, with a line for each key that has no counterpart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from .axolotl import from_axolotl
from .llama_factory import from_llama_factory
from .migration import Migration, MigrationError
from .trl_config import from_trl

__all__ = ["SOURCES", "Migration", "MigrationError", "migrate"]

# Trainer -> its migration, and keys that no other trainer has.
SOURCES: dict[str, tuple[Callable[[Migration], None], frozenset[str]]] = {
    "axolotl": (from_axolotl, frozenset({"base_model", "rl", "sequence_len", "micro_batch_size", "num_epochs"})),
    "llama-factory": (from_llama_factory, frozenset({"stage", "finetuning_type", "cutoff_len", "pref_beta"})),
    # The alignment handbook's configs are TRL's, with datasets of its own.
    "trl": (from_trl, frozenset({"loss_type", "use_peft", "per_device_train_batch_size", "dataset_mixer", "beta"})),
}


def migrate(path: Path, source: str | None = None) -> Migration:
    """Read a config of TRL, the alignment handbook, axolotl or LLaMA-Factory.

    Args:
        path: the YAML file.
        source: a key of `SOURCES`; None tells it from the file's keys.

    Returns:
        The recipe, and notes on what has no counterpart or another default.

    Raises:
        MigrationError: the file is no such config, or its method has no counterpart.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MigrationError(f"{path} can't be read as YAML: {error}") from None
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise MigrationError(f"{path} holds no settings: expected one `key: value` a line.")
    if source is None:
        source = _tell(path, set(content))
    migration = Migration(path, source, content)
    SOURCES[source][0](migration)
    migration.finish()
    return migration


def _tell(path: Path, keys: set[str]) -> str:
    matches = {name: len(own & keys) for name, (_, own) in SOURCES.items()}
    best = max(matches, key=lambda name: matches[name])
    if not matches[best]:
        raise MigrationError(
            f"{path}: none of its keys tells which trainer it is for. Name it: --from {' or '.join(SOURCES)}."
        )
    return best
