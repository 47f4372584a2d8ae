"""A run that has reached its end stays as it is, whatever its schedule and however it is started again."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests import helpers
from tests.training import forks, support
from tests.training.test_resume import AtEvent, assert_equal, folder_of, kill, logs, weights
from trl_dpo_ext.training import DiskSpaceError
from trl_dpo_ext.training.safety.checkpoint import newest_complete

EPOCHS: dict[str, Any] = {"num_train_epochs": 2, "max_steps": -1}
# Three rows, one or two to a step.
SCHEDULES: dict[str, dict[str, Any]] = {
    "max_steps in the middle of an epoch": {"max_steps": 4},
    "max_steps at the end of an epoch": {"max_steps": 3},
    "epochs": {**EPOCHS, "save_strategy": "epoch"},
    "a part of an epoch": {**EPOCHS, "num_train_epochs": 1.5},
    "accumulation": {"max_steps": 3, "gradient_accumulation_steps": 2},
    "evaluated after steps": {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2},
    "evaluated after epochs": {**EPOCHS, "eval_strategy": "epoch"},
    "evaluated after epochs, ends between": {"max_steps": 4, "eval_strategy": "epoch"},
    "the best model": {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
    },
    "saved before the end": {**EPOCHS, "save_steps": 4},
    "a stream": {"max_steps": 2, "stream": True},
    "logged after epochs": {**EPOCHS, "logging_strategy": "epoch"},
}


def trainer(model_dir: str, folder: Any, *, stream: bool = False, **changes: Any) -> Any:
    data: Any = helpers.ranked_dataset(3, responses=(2, 3))
    if stream:
        data = data.to_iterable_dataset()
    settings = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 1, "learning_rate": 3e-3}
    held_out = helpers.ranked_dataset(1, seed=1)
    return support.trainer(
        model_dir, folder, data, eval_dataset=held_out, peft_config=support.lora(), **{**settings, **changes}
    )


class Killed(Exception):
    pass


class InLastEvaluation(TrainerCallback):
    """Kills the run in its last evaluation, before that is logged."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise Killed


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_finished_run_stays_as_it_is(schedule, tiny_model_dir, tmp_path):
    one = trainer(tiny_model_dir, tmp_path, **SCHEDULES[schedule])
    one.train()
    expected, files, step = (weights(one), logs(one)), folder_of(tmp_path), one.state.global_step
    again = trainer(tiny_model_dir, tmp_path, **SCHEDULES[schedule])
    output = again.train(resume_from_checkpoint=True)
    assert again.state.global_step == step
    assert_equal(again, expected)
    if newest_complete(tmp_path).name == f"checkpoint-{step}":
        assert "train_loss" not in output.metrics
        assert folder_of(tmp_path) == files


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if "eval_strategy" in SCHEDULES[name]])
def test_killed_in_the_last_evaluation(schedule, tiny_model_dir, tmp_path):
    settings = SCHEDULES[schedule]
    whole = trainer(tiny_model_dir, tmp_path / "whole", **settings)
    whole.train()
    with pytest.raises(Killed):
        trainer(tiny_model_dir, tmp_path / "killed", **settings, callbacks=[InLastEvaluation()]).train()
    for _ in range(2):
        again = trainer(tiny_model_dir, tmp_path / "killed", **settings)
        again.train(resume_from_checkpoint=True)
        assert_equal(again, (weights(whole), logs(whole)))


def test_an_evaluation_killed_between_two_epochs_is_made_up_for(tiny_model_dir, tmp_path):
    """Its data loader draws from the random state that dropout draws from in the next epoch."""
    settings = {
        **SCHEDULES["evaluated after epochs"],
        "disable_dropout": False,
    }

    class InFirst(InLastEvaluation):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise Killed

    def run(name: str, **more: Any) -> Any:
        data = helpers.ranked_dataset(3, responses=(2, 3))
        return support.trainer(
            tiny_model_dir,
            tmp_path / name,
            data,
            eval_dataset=helpers.ranked_dataset(1, seed=1),
            peft_config=support.lora(lora_dropout=0.3),
            **{**settings, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 1, **more},
        )

    whole = run("whole")
    whole.train()
    with pytest.raises(Killed):
        run("killed", callbacks=[InFirst()]).train()
    again = run("killed")
    again.train(resume_from_checkpoint=True)
    assert_equal(again, (weights(whole), logs(whole)))


def test_sigterm_in_the_last_step(tiny_model_dir, tmp_path):
    whole = trainer(tiny_model_dir, tmp_path / "whole", max_steps=2)
    whole.train()

    def run() -> None:
        event = AtEvent(5, lambda: kill(signal.SIGTERM))
        trainer(
            tiny_model_dir, tmp_path / "stopped", max_steps=2, save_steps=5, callbacks=[event]
        ).train()  # a step has four events

    assert forks.in_child(run) == (128 + signal.SIGTERM) << 8
    assert newest_complete(tmp_path / "stopped").name == "checkpoint-2"
    again = trainer(tiny_model_dir, tmp_path / "stopped", max_steps=2, save_steps=5)
    again.train(resume_from_checkpoint=True)
    assert_equal(again, (weights(whole), logs(whole)))


def test_a_full_disk_leaves_the_earlier_checkpoint(tiny_model_dir, tmp_path, monkeypatch):
    real, left = torch.save, [6]  # a checkpoint takes five

    def save(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, os.strerror(28), str(path))
        real(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        DiskSpaceError,
        match=r"checkpoint-2 can't be written: No space left on device\. The disk has .*"
        r"The last complete checkpoint is .*checkpoint-1",
    ):
        trainer(tiny_model_dir, tmp_path, max_steps=3).train()
    monkeypatch.undo()
    assert not (tmp_path / "checkpoint-2").exists()
    again = trainer(tiny_model_dir, tmp_path, max_steps=3)
    again.train(resume_from_checkpoint=True)
    whole = trainer(tiny_model_dir, tmp_path / "whole", max_steps=3)
    whole.train()
    assert_equal(again, (weights(whole), logs(whole)))
