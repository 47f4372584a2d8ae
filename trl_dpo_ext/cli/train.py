"""`trl-dpo-ext train`: train from a recipe, in this process or through accelerate's launcher."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

from ._console import Commands
from ._errors import exit_code
from ._processes import ERROR_FOLDER, end_with_others, sentences

# Training runs the user's own losses and other libraries for hours: an error that isn't the package's own keeps its
# traceback.
EXPECTED: tuple[type[Exception], ...] = ()


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "train",
        help="train a model from a recipe",
        usage="trl-dpo-ext train --config RECIPE [--accelerate_config CONFIG [--num_processes N]] [--KEY VALUE ...]",
        epilog="Every key of a recipe is an option too, and options win: --max_steps 20 --output_dir outputs/trial. "
        "Without --accelerate_config it trains in this process.",
        allow_abbrev=False,
    )
    command.add_argument("--config", metavar="RECIPE", help="a YAML file, or a recipe that `trl-dpo-ext recipes` lists")
    command.add_argument(
        "--accelerate_config",
        metavar="CONFIG",
        help="launch through accelerate: a YAML file, or one of the package's: ddp, fsdp2, zero3, ...",
    )
    command.add_argument("--num_processes", type=int, metavar="N", help="processes to launch (default: the config's)")
    command.set_defaults(run=_train, takes_options=True, expected=EXPECTED)


def train(args: Sequence[str]) -> int:
    """Train as a recipe and its options say, and return the exit code; for scripts under a launcher."""
    end_with_others()
    return exit_code(partial(run_recipe, args), EXPECTED)


def _train(arguments: argparse.Namespace) -> int:
    config = [] if arguments.config is None else ["--config", arguments.config]
    options = [*config, *arguments.options]
    if arguments.accelerate_config is not None:
        return _launch(arguments.accelerate_config, arguments.num_processes, options)
    if arguments.num_processes is not None:
        from ..parsing import ParseError

        raise ParseError("--num_processes needs --accelerate_config, for example --accelerate_config ddp.")
    return run_recipe(options)


def run_recipe(args: Sequence[str]) -> int:
    """Train in this process.

    Args:
        args: `--config FILE_OR_NAME` and options.

    Raises:
        USER_ERRORS: see `trl_dpo_ext.run.user_errors`.
    """
    from ..run import train_recipe
    from ..run.recipe_files import resolve_config

    logging.basicConfig(format="%(levelname)s: %(message)s")
    if os.environ.get("RANK", "0") == "0":
        # Which reference the run has, how rows are laid out, what was found in the cache.
        logging.getLogger("trl_dpo_ext").setLevel(logging.INFO)
    train_recipe(resolve_config(list(args)))
    return 0


def _launch(config: str, processes: int | None, options: list[str]) -> int:
    """Run the script of the recipes under accelerate's launcher; the launched processes are those of `train`.

    torchrun reports failed processes at length, so their sentences come again below.
    """
    from .._compat.accelerate import launch
    from ..run.launch_line import check_launch
    from ..run.recipe_files import find_accelerate_config, recipes_folder, resolve_config

    options = resolve_config(options)  # so that a wrong name is said once, before anything starts
    file = find_accelerate_config(config)
    check_launch(file, processes)
    number = [] if processes is None else ["--num_processes", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ERROR_FOLDER] = folder
        try:
            code = launch(["--config_file", str(file), *number, str(recipes_folder() / "train.py"), *options])
        finally:
            del os.environ[ERROR_FOLDER]
        for sentence in sentences(folder):
            print(sentence, file=sys.stderr)
    return code
