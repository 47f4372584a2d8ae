"""`trl-dpo-ext sweep`: train a recipe with several settings on one loaded base model, and compare the runs."""

from __future__ import annotations

import argparse
import logging

from ._console import Commands

# As for `train`: an error that isn't the package's own keeps its traceback.
EXPECTED: tuple[type[Exception], ...] = ()


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "sweep",
        help="train a recipe with several settings, and compare the runs",
        usage="trl-dpo-ext sweep RECIPE (--grid KEY=VALUE,VALUE ... | --runs FILE) [--stop_early] [--KEY VALUE ...]",
        epilog="Each run has a folder inside output_dir, with the files that `trl-dpo-ext train` leaves. A sweep that "
        "was stopped goes on when it is started again.",
        allow_abbrev=False,
    )
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a recipe that `trl-dpo-ext recipes` lists")
    command.add_argument(
        "--grid",
        metavar="KEY=VALUE,VALUE",
        nargs="+",
        action="extend",
        help="values of a setting; with several keys, all combinations",
    )
    command.add_argument("--runs", metavar="FILE", help="YAML that maps names of runs to the settings they change")
    command.add_argument(
        "--stop_early", action="store_true", help="stop a run that falls behind the frontier of the finished ones"
    )
    command.set_defaults(run=_sweep, takes_options=True, expected=EXPECTED)


def _sweep(arguments: argparse.Namespace) -> int:
    from ..evaluation.frontier.frontier_file import FILE
    from ..parsing import ParseError
    from ..run.recipe_files import resolve_config
    from ..run.sweeping.sweep import sweep_recipe
    from ..run.sweeping.sweep_plan import grid_runs, named_runs

    if (arguments.grid is None) == (arguments.runs is None):
        raise ParseError("Give the settings to try as --grid KEY=VALUE,VALUE ..., or as --runs FILE.")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("trl_dpo_ext").setLevel(logging.INFO)
    runs = named_runs(arguments.runs) if arguments.grid is None else grid_runs(arguments.grid)
    folders = sweep_recipe(
        resolve_config(["--config", arguments.recipe, *arguments.options]), runs, stop_early=arguments.stop_early
    )
    compared = [folder for folder in folders if (folder / FILE).exists()]
    print(f"{len(folders)} of {len(runs)} runs are finished.")
    if not compared:
        print("To compare them, set reward and frontier_steps in the recipe.")
        return 0
    from . import make_parser

    folder = str(folders[0].parent)
    frontier = make_parser().parse_args(["eval", "frontier", *map(str, compared), "--output", folder])
    return int(frontier.run(frontier))
