"""Records reward and KL while a model is trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from ..before_after import Evaluation, evaluate_policy
from ..judging.contracts import Reward
from ..sampling.samples import AnyPrompt, text_of
from ..sampling.sequence_kl import Reference
from .frontier_file import (
    FILE,
    Frontier,
    FrontierError,
    FrontierPoint,
    prompts_sha256,
    read_frontier,
    settings_difference,
    write_frontier,
)


class FrontierCallback(TrainerCallback):
    """Records reward and KL in `frontier.json` in the output folder while a model is trained.

    It takes a point before the first step, after every `every` steps, and after the last step, each time with the same
    prompts and random numbers. Training is bit for bit the same without it. The file is written atomically. A run
    that resumes from a checkpoint keeps the points up to that step and continues.

    Every process samples the same; the main one writes. Weights may be sharded over the processes (FSDP2, ZeRO-3).

    Args:
        tokenizer: the model's tokenizer.
        prompts: [N] as in `sample`, N >= 2. They should differ from each other and from the training data.
        reward: the true reward, from `get_reward`, or any function of prompts and completions.
        reward_name: the reward's name in the file. Only runs with the same name are compared.
        method: what is trained, for tables and plots.
        reference: as in `sequence_kl`, for example a trainer's `reference`.
        every: optimizer steps between points, >= 1.
        max_new_tokens: maximum length of a sample, in tokens.
        seed: seed of the samples.
        batch_size: prompts per batch.
        start: result of `evaluate_policy` with these arguments before the first step, if it is known already, or what
            returns it once training has begun. None evaluates then.

    Attributes:
        points: the points so far.

    Raises:
        ValueError: there are fewer than two prompts, or `every` is out of range.

    Example:
        >>> trainer.add_callback(  # doctest: +SKIP
        ...     FrontierCallback(tokenizer, prompts, get_reward("vader"), reward_name="vader",
        ...                      reference=trainer.reference)
        ... )
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[AnyPrompt],
        reward: Reward,
        *,
        reward_name: str,
        method: str,
        reference: Reference,
        every: int = 100,
        max_new_tokens: int = 24,
        seed: int = 0,
        batch_size: int = 32,
        start: Evaluation | Callable[[], Evaluation] | None = None,
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
            "prompts_sha256": prompts_sha256([text_of(prompt) for prompt in prompts]),
            **self._sampling,
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read the points of a resumed run, or take the first point.

        Raises:
            FrontierError: the earlier points have other settings, or can't be read.
        """
        self.points, self._last = [], None
        path = Path(args.output_dir) / FILE
        if state.global_step > 0 and path.exists():
            before = read_frontier(path)
            if difference := settings_difference(before.settings, self.settings):
                raise FrontierError(
                    f"{path} has other settings ({difference}), so its points can't be compared with new ones. Resume "
                    "with its settings, or move the file away."
                )
            # The run may have taken points after the checkpoint that it resumes from.
            self.points = [point for point in before.points if point.step <= state.global_step]
        if not self.points:
            known = self._start() if callable(self._start) else self._start
            self._record(args, state, model, known if state.global_step == 0 else None)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take a point if this step is due for one."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._record(args, state, model)

    def after(self, step: int) -> Evaluation | None:
        """Return the evaluation at a step if the last point was taken there, else None."""
        return self._last if self.points and self.points[-1].step == step else None

    def _record(self, args: Any, state: Any, model: Any, known: Evaluation | None = None) -> None:
        if known is None:
            with random_state_kept():
                known = evaluate_policy(model, **self._policy, **self._sampling, progress=False)
        self._last = known
        assert known.kl is not None  # there is a reference
        assert known.kls is not None
        self.points.append(FrontierPoint(state.global_step, known.reward, known.kl, known.rewards, known.kls))
        if state.is_world_process_zero:
            write_frontier(Frontier(self.method, self.settings, self.points), Path(args.output_dir))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch at the end. Sampling and some rewards draw from them."""
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
