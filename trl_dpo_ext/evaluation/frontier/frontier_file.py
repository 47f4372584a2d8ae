"""The frontier of one run: points of reward against KL, as `frontier.json` stores them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ...record import FiniteNumber, Record, checked, read_json, versions, write_json
from ..sampling.sequence_kl import SequenceKL
from ..stats import Interval

FILE = "frontier.json"
FORMAT = 1


_ADVICE = "Restore the file that the run wrote, or train again."


class IntervalRecord(Record):
    """An `Interval` in a file."""

    mean: FiniteNumber
    low: FiniteNumber
    high: FiniteNumber
    level: FiniteNumber


class _KLRecord(Record):
    mean: FiniteNumber
    standard_error: FiniteNumber
    summed: FiniteNumber
    summed_standard_error: FiniteNumber


class _PointRecord(Record):
    step: Annotated[int, Field(ge=0, le=10**15)]
    reward: IntervalRecord
    kl: _KLRecord
    rewards: list[FiniteNumber]
    kls: list[FiniteNumber]


class _SettingsRecord(Record):
    prompts: Annotated[int, Field(ge=2, le=10**9)]
    reward: str
    max_new_tokens: Annotated[int, Field(ge=1, le=10**9)]


class _FrontierRecord(Record):
    method: str
    settings: _SettingsRecord
    points: list[_PointRecord]


class FrontierError(ValueError):
    """A frontier can't be read, continued, or compared with another. The message says what to do."""


@dataclass(frozen=True)
class FrontierPoint:
    """One step of a run.

    Attributes:
        step: optimizer steps done.
        reward: mean true reward of the samples, with its interval over prompts.
        kl: sequence KL to the reference, from the same samples.
        rewards: [N] reward of each prompt's sample. The prompts' order is the same for all points, so points can be
            paired.
        kls: [N] KL of each prompt's sample, summed over its tokens, nats.
    """

    step: int
    reward: Interval
    kl: SequenceKL
    rewards: list[float]
    kls: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name, without those of single prompts."""
        return {"step": self.step, "reward": self.reward.as_dict(), "kl": self.kl.as_dict()}


@dataclass(frozen=True)
class Frontier:
    """The points of a run.

    Attributes:
        method: what was trained, for example "dpo". Runs that differ only in hyperparameters and seeds share it.
        settings: how it was measured. Points with different settings can't be compared.
        points: one per step, steps ascending.
    """

    method: str
    settings: dict[str, Any]
    points: list[FrontierPoint]


def write_frontier(frontier: Frontier, folder: Path) -> None:
    """Write `frontier.json` into a run's folder, atomically."""
    content = {
        "format": FORMAT,
        "method": frontier.method,
        "settings": frontier.settings,
        "points": [{**point.as_dict(), "rewards": point.rewards, "kls": point.kls} for point in frontier.points],
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, content)


def read_frontier(run: str | Path) -> Frontier:
    """Return the frontier of a run.

    Args:
        run: its output folder, or the file itself.

    Raises:
        FrontierError: there is no file, or `FrontierCallback` didn't write it.
    """
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    try:
        content = read_json(path, FrontierError, _ADVICE)
    except FileNotFoundError:
        if not Path(run).is_dir():
            raise FrontierError(f"There is no folder {str(run)!r}. Give the output folders of runs.") from None
        raise FrontierError(
            f"{run} holds no {FILE}. A recipe writes one if reward and frontier_steps are set."
        ) from None
    if isinstance(content, dict) and type(content.get("format")) is int and content["format"] > FORMAT:
        raise FrontierError(
            f"{path} has format {content['format']}, but this version reads formats up to {FORMAT}. Update trl-dpo-ext."
        )
    record = checked(content, _FrontierRecord, path, FrontierError, _ADVICE)
    prompts = record.settings.prompts
    for point in record.points:
        for name, values in (("rewards", point.rewards), ("kls", point.kls)):
            if len(values) != prompts:
                raise FrontierError(
                    f"{path}, step {point.step}: {name} should be {prompts} finite numbers, one per prompt, to pair "
                    f"points. {_ADVICE}"
                )
    points = [
        FrontierPoint(
            point.step,
            Interval(**point.reward.model_dump()),
            SequenceKL(**point.kl.model_dump()),
            point.rewards,
            point.kls,
        )
        for point in record.points
    ]
    return Frontier(record.method, dict(content["settings"]), points)


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Return a hash of the prompts and their order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def settings_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Describe the first setting that differs, or return None."""
    name = next((key for key in sorted({*first, *second}) if first.get(key) != second.get(key)), None)
    if name is None:
        return None
    return "other prompts" if name == "prompts_sha256" else f"{name}: {first.get(name)!r} and {second.get(name)!r}"
