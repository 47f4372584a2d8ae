"""Trap 12: a run that silently learns nothing. Also checks that every trap has a test."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tests import helpers
from tests.helpers import ROOT
from tests.training import support
from tests.traps.support import bugs, put_back
from trl_dpo_ext.training import TrainingError
from trl_dpo_ext.training.safety.guard import TrainingGuard


def nobody_looks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TrainingGuard, "on_step_end", lambda *args, **kwargs: None)


@bugs(nobody_looks)
def test_trap_12_a_run_that_learns_nothing_stops(bug, monkeypatch, tiny_model_dir, tmp_path):
    """The loss is ln 2 and all gradients are 0. Without the guard, the run continues silently."""
    with put_back(bug, monkeypatch):
        trainer = support.trainer(
            tiny_model_dir, tmp_path, helpers.pair_dataset(6), peft_config=support.lora(), loss_type="dpo"
        )
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.register_hook(torch.zeros_like)
        said = ""
        try:
            losses = support.train(trainer).losses
            assert losses == [pytest.approx(math.log(2), rel=1e-5)] * 3
        except TrainingError as error:
            said = str(error)
        assert "Step 1: none of the 8" in said


def test_each_bug_that_reliability_lists_has_a_test():
    listed = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), flags=re.MULTILINE)
    names = re.findall(r"def test_trap_(\d\d)_", "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py")))
    assert len(listed) >= 21
    assert {int(number) for number in names} == {int(number) for number in listed}


def test_make_traps_runs_every_file_of_this_folder():
    chosen = re.search(r'^traps:.*\n.* -k "(.*)"$', (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert chosen is not None
    words = chosen[1].split(" or ")
    for path in (ROOT / "tests" / "traps").glob("test_*.py"):
        assert any(word in path.name for word in words), path.name
