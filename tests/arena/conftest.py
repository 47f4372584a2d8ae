"""A tiny arena: a few steps, few samples, two seeds."""

import pytest

from trl_dpo_ext.arena import plan, run_arena, standings, trial
from trl_dpo_ext.arena.truths import get_truth
from trl_dpo_ext.arena.world import World, load_world


@pytest.fixture
def tiny_arena(monkeypatch):
    """Shrink the arena to 9 short trials a loss and kind of data."""
    whole = load_world()
    prompts = {use: ids[:64] if use == "train" else ids[:24] for use, ids in whole.prompts.items()}
    world = World(whole.reference, whole.words, prompts, whole.responses[:64])
    stage = trial.Stage(world, get_truth("sentiment"))
    monkeypatch.setattr(run_arena, "_stage", lambda reward: stage)
    monkeypatch.setattr(run_arena, "PUBLISHED", plan.world.FOLDER / "none")
    monkeypatch.setattr(plan, "PICK_SEEDS", (100,))
    for module in (plan, standings):
        monkeypatch.setattr(module, "SEEDS", (0, 1, 2))
    for name, value in {"STEPS": 6, "POINTS": (3, 6), "SAMPLES": {"pick": 1, "measure": 1}}.items():
        monkeypatch.setattr(trial, name, value)
    plan.code_of_arena.cache_clear()
    yield stage
    plan.code_of_arena.cache_clear()
