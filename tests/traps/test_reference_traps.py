"""Traps of the reference: wrong weights, unread caches, and custom losses."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests import helpers
from tests.losses import transcriptions as reference
from tests.training import support
from tests.training.test_reference import moved, with_adapter
from tests.traps.support import bugs, fresh, put_back, row_logps
from trl_dpo_ext import PreferencePairs, register_loss
from trl_dpo_ext.reference import run_reference
from trl_dpo_ext.testing import temporary_losses
from trl_dpo_ext.training import PreferenceTrainer


def margins(model: Any, ref_model: Any, rows: Any) -> list[float]:
    """Return the difference of the best and worst responses' log-ratios for each row, from plain forwards."""
    out = []
    for row in rows:
        ratios = [pi - ref for pi, ref in zip(row_logps(model, row), row_logps(ref_model, row), strict=True)]
        out.append(ratios[row["ranks"].index(0)] - ratios[row["ranks"].index(1)])
    return out


# 1. The wrong reference


def adapters_stay_on(patch: pytest.MonkeyPatch) -> None:
    """The policy is its own reference: every loss is ln 2, as the first one should be."""
    patch.setattr(run_reference, "use_adapter", lambda *_: contextlib.nullcontext())


def base_under_every_adapter(patch: pytest.MonkeyPatch) -> None:
    """A continued adapter is compared with the base model, not with its initial weights."""
    use_adapter = run_reference.use_adapter
    patch.setattr(run_reference, "use_adapter", lambda model, _: use_adapter(model, None))


def read_the_folder_again(patch: pytest.MonkeyPatch) -> None:
    """The reference is loaded from the model's path, even if the weights in memory differ."""
    patch.setattr(run_reference, "frozen_copy", lambda model: None)


@bugs(adapters_stay_on, base_under_every_adapter, read_the_folder_again)
def test_trap_01_wrong_reference(bug, monkeypatch, tiny_model_dir, tmp_path):
    """After training, margins are relative to the weights that training started from.

    A first loss of ln 2 proves nothing: a policy that is its own reference has it too.
    """
    with put_back(bug, monkeypatch):
        with_adapter(tiny_model_dir).save_pretrained(tmp_path / "adapter")
        reopened = PeftModel.from_pretrained(fresh(tiny_model_dir), str(tmp_path / "adapter"), is_trainable=True)
        for model, settings, start in (
            (moved(tiny_model_dir), {}, moved),
            (tiny_model_dir, {"peft_config": support.lora()}, fresh),
            (moved(tiny_model_dir), {"peft_config": support.lora()}, moved),
            (with_adapter(tiny_model_dir), {}, with_adapter),
            (reopened, {}, with_adapter),
        ):
            trainer = support.trainer(
                model,
                tmp_path / "run",
                helpers.pair_dataset(4),
                loss_type="dpo",
                beta=1.0,
                max_steps=2,
                learning_rate=0.03,
                **settings,
            )
            losses = support.train(trainer).losses
            assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
            expected = margins(trainer.model.eval(), start(tiny_model_dir), trainer.train_dataset)
            assert max(map(abs, expected)) > 0.2
            got = trainer.evaluate(helpers.pair_dataset(4))
            assert got["eval_rewards/margins"] == pytest.approx(sum(expected) / 4, abs=1e-3)
            dpo = [-math.log(reference.sigmoid(margin)) for margin in expected]
            assert got["eval_loss"] == pytest.approx(sum(dpo) / 4, abs=1e-3)


# 16. A registered loss works everywhere


@pytest.fixture
def squared_margin():
    """Register a custom loss that other tests don't see."""
    with temporary_losses():

        @register_loss("squared_margin")
        def squared_margin(pairs: PreferencePairs, *, beta: float = 1.0) -> torch.Tensor:
            return (1 - beta * pairs.margins) ** 2

        yield


def reference_is_the_second_model(patch: pytest.MonkeyPatch) -> None:
    """As in TRL's example of a custom objective: `self.ref_model(...)`, which is None with adapters."""

    @contextlib.contextmanager
    def second_model(self: Any) -> Any:
        with torch.no_grad():
            yield self.ref_model

    patch.setattr(PreferenceTrainer, "reference", second_model)


@bugs(reference_is_the_second_model)
def test_trap_16_a_registered_loss_works_everywhere(bug, squared_margin, monkeypatch, tiny_model_dir, tmp_path):
    """Full fine-tuning, new and trained adapters, and cached log-probs give the same loss, and rewards are logged."""
    with put_back(bug, monkeypatch):
        for make, settings in (
            (fresh, {}),
            (fresh, {"precompute_ref_log_probs": True}),
            (fresh, {"peft_config": support.lora()}),
            (fresh, {"peft_config": support.lora(), "precompute_ref_log_probs": True}),
            (with_adapter, {}),
            (with_adapter, {"precompute_ref_log_probs": True}),
        ):
            data = helpers.pair_dataset(4)
            trainer = support.trainer(
                make(tiny_model_dir),
                tmp_path,
                data,
                eval_dataset=data,
                loss_type="squared_margin",
                max_steps=2,
                learning_rate=0.01,
                **settings,
            )
            run = support.train(trainer)
            assert run.losses[0] == pytest.approx(1.0, rel=1e-4)
            expected = margins(trainer.model.eval(), make(tiny_model_dir), trainer.train_dataset)
            assert max(map(abs, expected)) > 0.02
            log = trainer.evaluate()
            assert log["eval_loss"] == pytest.approx(sum((1 - margin) ** 2 for margin in expected) / 4, abs=1e-3)
            assert log["eval_rewards/margins"] == pytest.approx(sum(expected) / 4, abs=1e-3)
