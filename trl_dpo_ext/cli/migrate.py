"""`trl-dpo-ext migrate`: turn a config of TRL, the alignment handbook, axolotl or LLaMA-Factory into a recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ._console import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("migrate", help="turn another trainer's config into a recipe")
    command.add_argument("config", type=Path, help="YAML file of TRL, the alignment handbook, axolotl or LLaMA-Factory")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the recipe here (default: print it)")
    command.add_argument("--from", dest="source", metavar="TRAINER", help="trl, axolotl or llama-factory")
    command.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace) -> int:
    from ..registry import did_you_mean
    from ..run.migrating import SOURCES, MigrationError, migrate

    source, output = arguments.source, arguments.output
    if source is not None and source not in SOURCES:
        raise MigrationError(
            f"--from {source} is unknown.{did_you_mean(source, SOURCES)} Choose: {', '.join(SOURCES)}."
        )
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists already. Nothing was written; choose another file.")
    migration = migrate(arguments.config, source)
    text = migration.as_yaml()
    if output is None:
        sys.stdout.write(text)
        return 0
    output.write_text(text, encoding="utf-8")
    for note in migration.notes:
        print(f"- {note}")
    print(f"{output}: a recipe with {len(migration.recipe)} keys from a config of {migration.source}.")
    print(f"Next: trl-dpo-ext train --config {output}")
    return 0
