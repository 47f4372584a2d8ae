"""`trl-dpo-ext memory`: estimates the peak memory of a recipe, part by part, and what fits a card."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import sys
import warnings
from collections.abc import Iterator

from ._console import Commands, console


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("memory", help="estimate the peak memory of a recipe before it runs")
    command.add_argument("recipe", help="a YAML file, or a recipe that `trl-dpo-ext recipes` lists")
    command.add_argument("--gpu", type=_size, metavar="GB", help="size of the card; shows what fits and what to change")
    command.add_argument(
        "--model", help="model to use instead of the recipe's: a folder, Hub id or short name such as qwen3-8b"
    )
    command.add_argument("--responses", type=int, default=2, metavar="K", help="responses per prompt (default 2)")
    command.add_argument("--prompt", type=int, metavar="TOKENS", help="prompt length (default: half of max_length)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe; repeatable"
    )
    command.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    command.set_defaults(run=_memory)


def _size(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no card size; give GB, such as 24")
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of models and libraries: they concern a real run."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _memory(arguments: argparse.Namespace) -> int:
    with _quiet():
        return _report(arguments)


def _report(arguments: argparse.Namespace) -> int:
    if sys.stderr.isatty():
        print("Loading the libraries and estimating ...", file=sys.stderr)  # both take seconds

    from ..memory import Report, report_on
    from ..parsing import ParseError
    from ..run.recipe_memory import read_memory_setup
    from ..strict_yaml import YamlError, parse_yaml_value

    changes = {}
    for setting in arguments.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ParseError(f"--set {setting}: write it as KEY=VALUE.")
        try:
            changes[key] = parse_yaml_value(value, f"--set {setting}")
        except YamlError as error:
            raise ParseError(str(error)) from None
    if arguments.model is not None:
        changes["model_name_or_path"] = arguments.model
    gc.freeze()  # what the imports made stays; without it the garbage collector walks it again and again
    screen = console()

    def show_estimate(report: Report) -> None:
        if not arguments.json:
            screen.print(report.estimate_text())

    setup, model = read_memory_setup(
        arguments.recipe, changes, responses=arguments.responses, prompt_tokens=arguments.prompt
    )
    report = report_on(setup, recipe=arguments.recipe, model=model, card_gib=arguments.gpu, first=show_estimate)
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=2))
    elif arguments.gpu is not None:
        screen.print(report.card_text())
    return 0
