"""`trl-dpo-ext train`: train from a recipe in this process. `recipes/train.py` runs the same under a launcher."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from functools import partial

from ._console import Commands
from ._errors import exit_code

# Training runs the user's own losses and other libraries for hours: an error that isn't the package's own keeps its
# traceback.
EXPECTED: tuple[type[Exception], ...] = ()


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "train",
        help="train a model from a recipe, in one process",
        usage="trl-dpo-ext train --config FILE [--KEY VALUE ...]",
        epilog="Every key of a recipe is an option too, and options win: --max_steps 20 --output_dir outputs/trial. "
        "For several GPUs use `accelerate launch recipes/train.py` with the same arguments.",
        allow_abbrev=False,
    )
    command.add_argument("--config", metavar="FILE", help="the recipe, a YAML file")
    command.set_defaults(run=_train, takes_options=True, expected=EXPECTED)


def train(args: Sequence[str]) -> int:
    """Train as a recipe and its options say, and return the exit code; for scripts under a launcher."""
    return exit_code(partial(_run, args), EXPECTED)


def _train(arguments: argparse.Namespace) -> int:
    config = [] if arguments.config is None else ["--config", arguments.config]
    return _run([*config, *arguments.options])


def _run(args: Sequence[str]) -> int:
    from ..run import train_recipe

    logging.basicConfig(format="%(levelname)s: %(message)s")
    if os.environ.get("RANK", "0") == "0":
        # Which reference the run has, how rows are laid out, what was found in the cache.
        logging.getLogger("trl_dpo_ext").setLevel(logging.INFO)
    train_recipe(args)
    return 0
