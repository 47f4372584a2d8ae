"""`trl-dpo-ext arena`: where losses stand in a small world with a known truth."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ._console import Commands, console

# Losses may be the user's own: an error that isn't the package's keeps its traceback.
EXPECTED: tuple[type[Exception], ...] = ()


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "arena",
        help="place losses among all others: reward against KL in a small world, tuned alike, over seeds",
        epilog="Each loss is tried with 6 settings on 2 seeds, and the best with 5 other seeds on other prompts: 17 "
        "runs of a few seconds for each kind of data. An arena that was stopped goes on when it is started again.",
        allow_abbrev=False,
    )
    command.add_argument("loss", metavar="LOSS", nargs="*", help="registered losses (default: all)")
    command.add_argument(
        "--import_module", metavar="MODULE", nargs="+", default=[], help="modules that register losses"
    )
    command.add_argument(
        "--data",
        metavar="KIND",
        nargs="+",
        help="kinds of data (default: pairs rankings flipped thumbs; also: noise on_policy)",
    )
    command.add_argument(
        "--reward",
        default="sentiment",
        help="the truth: sentiment (default), per_word (length-neutral), shortcut (commas lift labels, not the truth)",
    )
    command.add_argument("--jobs", type=int, metavar="N", help="processes (default: the cores)")
    command.add_argument("--output", metavar="FOLDER", default="outputs/arena", help="default: outputs/arena")
    command.set_defaults(run=_arena, expected=EXPECTED)


def _arena(arguments: argparse.Namespace) -> int:
    import sys
    from importlib import import_module

    from ..losses import get_loss, list_losses
    from ..parsing import ParseError

    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("trl_dpo_ext").setLevel(logging.INFO)
    sys.path.insert(0, str(Path.cwd()))
    for name in arguments.import_module:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise ParseError(f"--import_module: can't import {name!r} ({error}).") from None
    from ..arena.faults import faults
    from ..arena.feedback import DEFAULT_KINDS
    from ..arena.report import arena_tables, write_report
    from ..arena.run_arena import run_arena
    from ..arena.standings import BASELINES, standings, verdicts

    every = [spec.name for spec in list_losses()]
    asked = [get_loss(name).name for name in arguments.loss] or every
    kinds = arguments.data or list(DEFAULT_KINDS)
    needed = {BASELINES.get(kind, "dpo") for kind in kinds if kind != "thumbs" or _reads_labels(asked)}
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    output = Path(arguments.output)
    records = run_arena(
        [*asked, *sorted(needed - set(asked))],
        output,
        kinds=kinds,
        reward=arguments.reward,
        jobs=jobs,
        modules=arguments.import_module,
    )
    found = standings(every, kinds, arguments.reward, records)
    wrong = faults(asked, kinds, arguments.reward, records, every)
    for table in arena_tables(found, asked if arguments.loss else ()):
        console().print(table)
    for sentence in [*verdicts(found, asked), *wrong]:
        print(sentence)
    files = write_report(output, found, wrong, records)
    print(f"Saved to {output}: {', '.join(files)}.")
    return 0


def _reads_labels(losses: list[str]) -> bool:
    from ..losses import get_loss

    return any("labels" in get_loss(name).needs for name in losses)
