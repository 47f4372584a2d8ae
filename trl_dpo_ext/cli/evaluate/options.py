"""Options that evaluations share, and what is checked before one runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from .._console import Commands

MODEL = "folder of an adapter or a model, Hub id, or .jsonl file of samples (prompt, completion)"
SCORER = (
    "vader, a classifier or reward model (Hub id or folder), package.module:function, or endpoint:MODEL behind an "
    "OpenAI-compatible endpoint"
)

Kinds: TypeAlias = Commands


def add_data(command: argparse.ArgumentParser) -> None:
    """Add where prompts come from and how they are completed."""
    command.add_argument("--data", help="Hub id, folder or file of the dataset; not needed for files of samples")
    command.add_argument("--config", help="the dataset's configuration (subset)")
    command.add_argument("--split", default="test", help="(default: test)")
    command.add_argument("--converter", help="brings the rows into an accepted form, as `dataset_converter` does")
    command.add_argument("--prompts", type=count, default=128, help="how many at most (default: 128)")
    command.add_argument(
        "--first", action="store_true", help="take the split's first prompts, as a recipe does, and draw none"
    )
    command.add_argument("--max-new-tokens", type=count, default=64, help="length of a sample (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="of prompts and samples (default: 0)")
    command.add_argument("--batch-size", type=count, default=32, help="prompts sampled at once (default: 32)")


def add_endpoint(command: argparse.ArgumentParser, templates: str) -> None:
    """Add what is said about an endpoint; `templates` names those that come with the package."""
    group = command.add_argument_group("a model behind an endpoint", "The key is taken from OPENAI_API_KEY.")
    group.add_argument("--base-url", help="of the endpoint (default: OpenAI's)")
    group.add_argument("--template", help=f"{templates}, or the path of your own")
    group.add_argument("--cache", help="file of all answers, which go on from there (default: verdicts.jsonl)")
    group.add_argument("--cap-requests", type=count, dest="max_requests", help="send no more requests than this")
    group.add_argument("--cap-tokens", type=count, dest="max_tokens", help="ask nothing more after so many tokens")


def add_json(command: argparse.ArgumentParser) -> None:
    """Add where the numbers are written."""
    command.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - prints them and nothing else")


def count(text: str) -> int:
    """Return a whole number that is 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def nonnegative(text: str) -> float:
    """Return a finite number that is 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def guarded(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """Return a command that checks its output paths and runs."""

    def command(arguments: argparse.Namespace) -> int:
        sys.path.insert(0, str(Path.cwd()))  # for functions of one's own, as recipes/train.py does
        _check_outputs(arguments)
        run(arguments)
        return 0

    return command


def _check_outputs(arguments: argparse.Namespace) -> None:
    for name in ("json", "output", "pairs"):
        path = getattr(arguments, name, None)
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: the folder {Path(path).absolute().parent} does not exist.")
