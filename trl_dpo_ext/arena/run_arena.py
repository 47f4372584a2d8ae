"""Runs the arena: the trials that are missing, in one or several processes, and the results."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from ..losses import get_loss
from ..training.safety.output_folder import held
from .feedback import DEFAULT_KINDS, check_kinds
from .plan import Trial, measure_trials, pick_trials
from .record_file import FILE, PUBLISHED, append_trial, read_trials
from .trial import Stage, run_trial
from .truths import get_truth
from .world import load_world

logger = logging.getLogger(__name__)


def run_arena(
    losses: Sequence[str],
    output: Path,
    *,
    kinds: Sequence[str] = DEFAULT_KINDS,
    reward: str = "sentiment",
    jobs: int = 1,
    modules: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Run the trials of some losses that aren't in the output folder yet; return all known trials by key.

    Args:
        losses: registered names.
        output: a folder; `trials.jsonl` in it grows with each trial, so a stopped arena goes on.
        kinds: of data; each loss takes those that it reads.
        reward: name of a truth.
        jobs: processes, one core each. With 1, the trials run in this one.
        modules: modules to import in each process first; they register losses.

    Raises:
        ParseError, RegistryError: an unknown kind, reward or loss, before anything is loaded.
        OutputFolderError: another arena uses the folder.
    """
    check_kinds(list(kinds))
    get_truth(reward)
    names = list(dict.fromkeys(get_loss(name).name for name in losses))
    with held(output):
        path = output / FILE
        records = {**read_trials(PUBLISHED), **read_trials(path)}

        def complete(title: str, trials: Sequence[Trial]) -> None:
            missing = [one for one in trials if one.key not in records]
            logger.info(f"{title}: {len(missing)} of {len(trials)} trials to run.")
            for record in track(_run(missing, jobs, modules), title, total=len(missing), disable=not missing):
                append_trial(path, record)
                records[record["key"]] = record

        complete("choosing settings", pick_trials(names, kinds, reward))
        complete("measuring", measure_trials(names, kinds, reward, records))
    return records


def _run(trials: Sequence[Trial], jobs: int, modules: Sequence[str]) -> Iterator[dict[str, Any]]:
    if jobs == 1 or len(trials) < 2:
        yield from map(_record, trials)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
    with ProcessPoolExecutor(min(jobs, len(trials)), context, initializer=_prepare, initargs=(list(modules),)) as pool:
        futures = [pool.submit(_record, one) for one in trials]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _prepare(modules: list[str]) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, os.getcwd())
    for name in modules:
        import_module(name)


@cache
def _stage(reward: str) -> Stage:
    return Stage(load_world(), get_truth(reward))


def _record(one: Trial) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
    try:
        found = run_trial(
            _stage(one.reward), loss=one.loss, setting=one.tried, kind=one.kind, seed=one.seed, use=one.use
        )
    finally:
        torch.set_num_threads(threads)
    return {"key": one.key, **asdict(one), "tried": one.tried.as_text(), **found}
