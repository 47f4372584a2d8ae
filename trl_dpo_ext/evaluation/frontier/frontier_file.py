"""The frontier of one run: points of reward against KL, as `frontier.json` stores them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...record import versions, write_json
from ..sampling.sequence_kl import SequenceKL
from ..stats import Interval

FILE = "frontier.json"
FORMAT = 1


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not Path(run).is_dir():
            raise FrontierError(f"There is no folder {str(run)!r}. Give the output folders of runs.") from None
        raise FrontierError(
            f"{run} holds no {FILE}. A recipe writes one if reward and frontier_steps are set."
        ) from None
    except (OSError, ValueError) as error:
        raise FrontierError(f"{path} can't be read: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise FrontierError(
            f"{path} has format {content['format']}, but this version reads formats up to {FORMAT}. Update trl-dpo-ext."
        )
    try:
        points = [
            FrontierPoint(
                int(row["step"]), Interval(**row["reward"]), SequenceKL(**row["kl"]), row["rewards"], row["kls"]
            )
            for row in content["points"]
        ]
        frontier = Frontier(str(content["method"]), dict(content["settings"]), points)
        prompts = int(frontier.settings["prompts"])
    except (KeyError, TypeError, ValueError) as error:
        raise FrontierError(f"{path} is not the frontier of a run: {type(error).__name__} {error}.") from error
    for point in points:
        for name, values in (("rewards", point.rewards), ("kls", point.kls)):
            if not _are_numbers(values, prompts):
                raise FrontierError(
                    f"{path}, step {point.step}: {name} should be {prompts} finite numbers, one per prompt, to pair "
                    "points. Restore the file that the run wrote, or train again."
                )
    return frontier


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Return a hash of the prompts and their order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def settings_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Describe the first setting that differs, or return None."""
    name = next((key for key in sorted({*first, *second}) if first.get(key) != second.get(key)), None)
    if name is None:
        return None
    return "other prompts" if name == "prompts_sha256" else f"{name}: {first.get(name)!r} and {second.get(name)!r}"
