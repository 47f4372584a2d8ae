"""Which trials the arena runs, and what identifies one, so that none runs twice."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..losses import LossSpec, get_loss
from . import trial, world
from .grids import grid_of
from .trial import Setting

NUMBERS = 1  # raise it with any change after which the same trial gives other numbers
PICK_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Trial:
    """A trial by its numbers.

    Attributes:
        loss: registered name.
        kind: of data.
        reward: name of the truth.
        setting: place in the loss's grid, from 0.
        seed: see `run_trial`.
        use: "pick" or "measure".
    """

    loss: str
    kind: str
    reward: str
    setting: int
    seed: int
    use: str

    @property
    def tried(self) -> Setting:
        """The setting itself."""
        return grid_of(get_loss(self.loss))[self.setting]

    @property
    def key(self) -> str:
        """What identifies it: its numbers, its setting, and the code of the loss, the world and the arena."""
        text = "/".join(
            map(str, (*astuple(self), self.tried.as_text(), code_of(get_loss(self.loss).fn), code_of_arena()))
        )
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def readable_kinds(spec: LossSpec, kinds: Iterable[str]) -> list[str]:
    """Return the kinds of data that a loss learns from. Thumbs have no order, so only losses on labels read them."""
    return [kind for kind in kinds if kind != "thumbs" or "labels" in spec.needs]


def pick_trials(losses: Sequence[str], kinds: Sequence[str], reward: str) -> list[Trial]:
    """Return the trials that choose each loss's setting: its whole grid, on seeds and prompts of their own."""
    return [
        Trial(loss, kind, reward, setting, seed, "pick")
        for loss in losses
        for kind in readable_kinds(get_loss(loss), kinds)
        for setting in range(len(grid_of(get_loss(loss))))
        for seed in PICK_SEEDS
    ]


def picked_setting(loss: str, kind: str, reward: str, records: dict[str, dict[str, Any]]) -> int | None:
    """Return the setting with the most reward, averaged over budgets and seeds; of equal ones, the first.

    None if a trial is missing, or all settings diverge. A setting that diverges on a seed isn't chosen.
    """
    means: dict[int, float] = {}
    for one in pick_trials([loss], [kind], reward):
        if (record := records.get(one.key)) is None:
            return None
        value = float("-inf") if record["diverged"] else sum(record["within"].values()) / len(record["within"])
        means[one.setting] = means.get(one.setting, 0.0) + value
    best = max(means, key=lambda setting: means[setting])
    return None if means[best] == float("-inf") else best


def measure_trials(
    losses: Sequence[str], kinds: Sequence[str], reward: str, records: dict[str, dict[str, Any]]
) -> list[Trial]:
    """Return the trials that count: each loss's chosen setting on fresh seeds and other prompts."""
    return [
        Trial(loss, kind, reward, setting, seed, "measure")
        for loss in losses
        for kind in readable_kinds(get_loss(loss), kinds)
        if (setting := picked_setting(loss, kind, reward, records)) is not None
        for seed in SEEDS
    ]


@cache
def code_of(function: Callable[..., Any]) -> str:
    """Return a hash of the code in a function's file, without comments and docstrings."""
    try:
        tree = ast.parse(Path(inspect.getfile(function)).read_text(encoding="utf-8"))
    except (OSError, TypeError, SyntaxError):  # typed in a notebook
        return hashlib.sha256(repr(function.__code__.co_code).encode()).hexdigest()[:12]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


@cache
def code_of_arena() -> str:
    """Return a hash of what a trial's numbers follow from, besides the loss."""
    digest = hashlib.sha256(f"{NUMBERS} {trial.STEPS} {trial.POINTS} {trial.SAMPLES} {trial.SEQUENCES}".encode())
    for name in world.FILES:
        digest.update((world.FOLDER / name).read_bytes())
    return digest.hexdigest()[:12]
