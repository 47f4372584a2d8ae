"""Reward against KL over training: what each step gains, and how far from the reference it strays for that."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from ..record import versions, write_json
from .kl import Reference, SequenceKL
from .report import Evaluation, evaluate_policy
from .rewards import Reward
from .stats import Interval

FILE = "frontier.json"
FORMAT = 1


class FrontierError(ValueError):
    """A frontier that can't be read, gone on with, or compared with another; the message says what to do."""


@dataclass(frozen=True)
class FrontierPoint:
    """One step of a run.

    Attributes:
        step: optimizer steps done.
        reward: mean true reward of the samples with its interval over prompts.
        kl: sequence KL to the reference, of the same samples.
        rewards: [N] of each prompt's sample, in the order of the prompts, so that points can be paired.
        kls: [N] of each sample, summed over its tokens, nats.
    """

    step: int
    reward: Interval
    kl: SequenceKL
    rewards: list[float]
    kls: list[float]

    @classmethod
    def of(cls, step: int, found: Evaluation) -> FrontierPoint:
        """Return the point that an evaluation with a reference is."""
        assert found.kl is not None
        assert found.kls is not None
        return cls(step, found.reward, found.kl, found.rewards, found.kls)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name, those of single prompts left out."""
        return {"step": self.step, "reward": self.reward.as_dict(), "kl": self.kl.as_dict()}


@dataclass(frozen=True)
class Frontier:
    """A run's points.

    Attributes:
        method: what was trained, for example "dpo"; runs that differ only in numbers and seeds share it.
        settings: what was measured, and how. Points of different settings can't be compared.
        points: one each step, steps ascending.
    """

    method: str
    settings: dict[str, Any]
    points: list[FrontierPoint]


class FrontierCallback(TrainerCallback):
    """Records reward and KL into `frontier.json` in the output folder, while a model is trained.

    Points are taken before the first step, after every `every` steps, and after the last one, with the same prompts
    and random numbers each time. The training is the same with and without it, bit for bit. The file is whole
    whenever it is there; a run resumed from a checkpoint keeps the points up to that step and goes on.

    Every process samples; the main one writes. Weights have to be whole on each process.

    Args:
        tokenizer: the model's.
        prompts: [N] plain text, N >= 2, best all different and not trained on.
        reward: the true reward, from `get_reward`, or any function of prompts and completions.
        reward_name: what the file calls it; runs are compared where it is the same.
        method: what is trained, as pictures are to call it.
        reference: as in `sequence_kl`; a trainer's `reference`.
        every: optimizer steps between points, >= 1.
        max_new_tokens: tokens to sample at most.
        seed: of the samples.
        batch_size: prompts a forward.
        start: what `evaluate_policy` found with these arguments before the first step, where that is known already;
            None evaluates then.

    Attributes:
        points: so far.

    Raises:
        ValueError: fewer than two prompts, or `every` out of range.

    Example:
        >>> trainer.add_callback(  # doctest: +SKIP
        ...     FrontierCallback(tokenizer, prompts, get_reward("vader"), reward_name="vader",
        ...                      reference=trainer.reference)
        ... )
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        reward: Reward,
        *,
        reward_name: str,
        method: str,
        reference: Reference,
        every: int = 100,
        max_new_tokens: int = 24,
        seed: int = 0,
        batch_size: int = 32,
        start: Evaluation | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every!r} is out of range, expected >= 1.")
        if len(prompts) < 2:
            raise ValueError(f"An interval needs at least two prompts, got {len(prompts)}.")
        self.every, self.method = every, method
        self._start = start
        self._last: Evaluation | None = None
        self.points: list[FrontierPoint] = []
        self._policy: dict[str, Any] = {
            "tokenizer": tokenizer,
            "prompts": list(prompts),
            "reward": reward,
            "reference": reference,
        }
        self._sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "batch_size": batch_size}
        self.settings = {
            "reward": reward_name,
            "prompts": len(prompts),
            "prompts_sha256": prompts_sha256(prompts),
            **self._sampling,
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take up the points of a run that is resumed, or take the first one.

        Raises:
            FrontierError: the points so far were measured otherwise, or can't be read.
        """
        self.points, self._last = [], None
        path = Path(args.output_dir) / FILE
        if state.global_step > 0 and path.exists():
            before = read_frontier(path)
            if difference := settings_difference(before.settings, self.settings):
                raise FrontierError(
                    f"{path} was begun with other settings ({difference}), so its points and new ones can't stand "
                    "beside each other. Resume with the settings it had, or move it away to begin anew."
                )
            # A run may have been ended after the checkpoint that it goes on from.
            self.points = [point for point in before.points if point.step <= state.global_step]
        if not self.points:
            self._record(args, state, model, self._start if state.global_step == 0 else None)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take a point where one is due."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._record(args, state, model)

    def after(self, step: int) -> Evaluation | None:
        """Return the evaluation at a step, if that is where the last point was taken."""
        return self._last if self.points and self.points[-1].step == step else None

    def _record(self, args: Any, state: Any, model: Any, known: Evaluation | None = None) -> None:
        if known is None:
            with random_state_kept():
                known = evaluate_policy(model, **self._policy, **self._sampling, progress=False)
        self._last = known
        self.points.append(FrontierPoint.of(state.global_step, known))
        if state.is_world_process_zero:
            content = {
                "format": FORMAT,
                "method": self.method,
                "settings": self.settings,
                "points": [{**point.as_dict(), "rewards": point.rewards, "kls": point.kls} for point in self.points],
                "versions": versions(),
            }
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            write_json(Path(args.output_dir) / FILE, content)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random states of Python, NumPy and torch as they are, whatever happens inside; a reward may draw."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


def read_frontier(run: str | Path) -> Frontier:
    """Return the frontier of a run.

    Args:
        run: its output folder, or the file itself.

    Raises:
        FrontierError: there is none, or it isn't what `FrontierCallback` writes.
    """
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not Path(run).is_dir():
            raise FrontierError(f"There is no folder {str(run)!r}. Give the output folders of runs.") from None
        raise FrontierError(
            f"{run} holds no {FILE}. A recipe writes one where reward and frontier_steps are set."
        ) from None
    except (OSError, ValueError) as error:
        raise FrontierError(f"{path} can't be read: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise FrontierError(
            f"{path} has format {content['format']}, this package reads up to {FORMAT}. Update trl-dpo-ext."
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
        raise FrontierError(f"{path} is no frontier of a run: {type(error).__name__} {error}.") from error
    for point in points:
        for name, values in (("rewards", point.rewards), ("kls", point.kls)):
            if not _numbers(values, prompts):
                raise FrontierError(
                    f"{path}, step {point.step}: {name} should be {prompts} finite numbers, one a prompt. Points can't "
                    "be paired without them; take the file as the run wrote it, or train again."
                )
    return frontier


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Return what tells whether the same prompts were sampled, in the same order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def settings_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return in words the first thing in which settings differ, or None."""
    name = next((key for key in sorted({*first, *second}) if first.get(key) != second.get(key)), None)
    if name is None:
        return None
    return "other prompts" if name == "prompts_sha256" else f"{name}: {first.get(name)!r} and {second.get(name)!r}"
