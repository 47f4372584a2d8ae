"""Faults that show in the trials: losses that diverge, learn nothing, ignore a hyperparameter, or equal another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..losses import get_loss
from .grids import grid_of
from .plan import Trial, pick_trials

_NOTHING = 1e-3  # nats of KL after all steps


def faults(
    losses: Sequence[str],
    kinds: Sequence[str],
    reward: str,
    records: Mapping[str, dict[str, Any]],
    others: Sequence[str] = (),
) -> list[str]:
    """Return a sentence for each fault.

    Args:
        losses: registered names.
        kinds: of data.
        reward: name of the truth.
        records: all known trials by key.
        others: further losses, which `losses` may equal.
    """
    known = {
        loss: {one: records[one.key] for one in pick_trials([loss], kinds, reward) if one.key in records}
        for loss in dict.fromkeys([*losses, *others])
    }
    found = []
    for loss in losses:
        trials = known[loss]
        found += _diverged(loss, trials)
        found += _still(loss, trials)
        found += _ignored(loss, trials)
    found += _equal(known, losses)
    return found


def _diverged(loss: str, trials: Mapping[Trial, Mapping[str, Any]]) -> list[str]:
    settings = dict.fromkeys(f"{one.tried.as_text()} on {one.kind}" for one, row in trials.items() if row["diverged"])
    return [f"{loss} diverges: {'; '.join(settings)}."] if settings else []


def _still(loss: str, trials: Mapping[Trial, Mapping[str, Any]]) -> list[str]:
    kinds = dict.fromkeys(one.kind for one in trials)
    still = [
        kind
        for kind in kinds
        if all(abs(row["points"][-1]["kl"]) < _NOTHING for one, row in trials.items() if one.kind == kind)
    ]
    return [f"{loss} learns nothing from {', '.join(still)}."] if still else []


def _ignored(loss: str, trials: Mapping[Trial, Mapping[str, Any]]) -> list[str]:
    """Hyperparameters whose other values gave the same runs as the defaults, on every kind of data and seed."""
    grid = grid_of(get_loss(loss))
    same: dict[str, list[bool]] = {}
    for one, row in trials.items():
        default = trials.get(replace(one, setting=0))
        if one.setting and default is not None and not (row["diverged"] or default["diverged"]):
            for name in grid[one.setting].hyperparameters:
                same.setdefault(name, []).append(_alike(row, default))
    return [f"{loss} ignores {name}: other values give the same runs." for name, found in same.items() if all(found)]


def _equal(known: Mapping[str, Mapping[Trial, Mapping[str, Any]]], losses: Sequence[str]) -> list[str]:
    sentences = []
    names = list(known)
    defaults = {
        loss: {(one.kind, one.seed): row for one, row in known[loss].items() if one.setting == 0} for loss in names
    }
    for place, first in enumerate(names):
        if first not in losses:
            continue
        for second in names[place + 1 :]:
            shared = defaults[first].keys() & defaults[second].keys()
            if shared and all(_alike(defaults[first][key], defaults[second][key]) for key in shared):
                kinds = ", ".join(sorted({kind for kind, _ in shared}))
                sentences.append(f"{first} and {second} give the same runs with their defaults ({kinds}).")
    return sentences


def _alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs are the same up to rounding: a sampled token may tip over, so KLs differ a little."""
    pairs = list(zip(first["points"], second["points"], strict=False))
    same_length = len(first["points"]) == len(second["points"])
    return same_length and all(abs(a["kl"] - b["kl"]) <= 1e-3 + 0.01 * abs(a["kl"]) for a, b in pairs)
