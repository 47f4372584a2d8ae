"""Options that evaluations share, and the checks before one runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from .._console import Commands

MODEL = "folder of an adapter or model, Hub id, or .jsonl file of samples (prompt, completion)"

Evaluations: TypeAlias = Commands


def add_data(command: argparse.ArgumentParser) -> None:
    """Add the options for prompts and sampling."""
    command.add_argument("--data", help="Hub id, folder or file of the dataset; not needed for files of samples")
    command.add_argument("--config", help="the dataset's configuration (subset)")
    command.add_argument("--split", default="test", help="(default: test)")
    command.add_argument("--converter", help="dataset converter for the rows, like `dataset_converter` in a recipe")
    command.add_argument("--prompts", type=count, default=128, help="number of prompts (default: 128)")
    command.add_argument(
        "--first",
        action="store_true",
        help="use the split's first prompts, as a recipe does, not random ones",
    )
    command.add_argument("--max-new-tokens", type=count, default=64, help="maximum length of a sample (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="seed for prompts and samples (default: 0)")
    command.add_argument("--batch-size", type=count, default=32, help="prompts per batch (default: 32)")


def add_endpoint(command: argparse.ArgumentParser, templates: str) -> None:
    """Add the options for an endpoint. `templates` names the packaged ones, for the help text."""
    group = command.add_argument_group("a model behind an endpoint", "The key comes from OPENAI_API_KEY.")
    group.add_argument("--base-url", help="address of the endpoint (default: OpenAI)")
    group.add_argument("--template", help=f"{templates}, or the path of your own file")
    group.add_argument("--cache", help="file for all answers; a later run continues from it (default: verdicts.jsonl)")
    group.add_argument("--cap-requests", type=count, dest="max_requests", help="maximum number of requests")
    group.add_argument("--cap-tokens", type=count, dest="max_tokens", help="stop asking after this many tokens")


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the option for JSON output."""
    command.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - prints only them")


def count(text: str) -> int:
    """Parse an integer >= 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def nonnegative(text: str) -> float:
    """Parse a finite number >= 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def guarded(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """Wrap a command: check its output paths before it runs."""

    def command(arguments: argparse.Namespace) -> int:
        sys.path.insert(0, str(Path.cwd()))  # so that package.module:function finds the user's modules
        _check_outputs(arguments)
        run(arguments)
        return 0

    return command


def _check_outputs(arguments: argparse.Namespace) -> None:
    for name in ("json", "output", "pairs"):
        path = getattr(arguments, name, None)
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: the folder {Path(path).absolute().parent} does not exist.")
