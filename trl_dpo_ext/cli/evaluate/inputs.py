"""Turn options into prompts, sampling settings, judges and endpoint settings."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sources import Prompts


def prompts_of(arguments: argparse.Namespace, sources: list[str]) -> Prompts:
    """Check all sources; return the prompts of --data, or else those of the first file of samples."""
    from .sources import check_source, is_file, prompts_of_file, read_prompts

    for source in sources:
        check_source(source)
    if arguments.data is not None:
        return read_prompts(
            arguments.data,
            config=arguments.config,
            split=arguments.split,
            converter=arguments.converter,
            count=arguments.prompts,
            seed=None if arguments.first else arguments.seed,
        )
    file = next(filter(is_file, sources), None)
    if file is None:
        raise ValueError("Say with --data where the prompts come from.")
    return prompts_of_file(file, arguments.prompts)


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `sample`."""
    options = {name: getattr(arguments, name) for name in ("max_new_tokens", "seed", "batch_size")}
    return {**options, "progress": sys.stderr.isatty()}


def get_judges(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Return the judges by name."""
    from ...evaluation import get_judge
    from ...evaluation.judging.rewards import ENDPOINT

    settings = endpoint_options(arguments, names)
    return {name: get_judge(name, **(settings if name.startswith(ENDPOINT) else {})) for name in names}


def endpoint_options(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Return the endpoint's arguments, empty if no judge or reward uses one.

    Raises:
        ValueError: an endpoint option is given, but nothing uses an endpoint.
    """
    from ...evaluation.judging.rewards import ENDPOINT

    options = ("base_url", "template", "cache", "max_requests", "max_tokens")
    given = {name: getattr(arguments, name) for name in options if getattr(arguments, name) is not None}
    if any(name.startswith(ENDPOINT) for name in names):
        return {**given, "progress": sys.stderr.isatty()}
    if given:
        raise ValueError(f"Nothing here uses an endpoint (endpoint:MODEL), so there is no {', '.join(given)} to set.")
    return {}
