"""A run that is killed and resumed gives the same result as an uninterrupted run, bit for bit."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests import helpers
from tests.training import forks, support
from trl_dpo_ext.training import CheckpointError, engine
from trl_dpo_ext.training.safety import checkpoint_files
from trl_dpo_ext.training.safety.checkpoint import checkpoints, find_checkpoint, newest_complete, rotate
from trl_dpo_ext.training.safety.checkpoint_files import MARKER, why_incomplete

# Five optimizer steps an epoch, two micro-batches each; a checkpoint every second step, a log every third, so that
# checkpoints fall between logs and in the middle of an epoch.
SCHEDULE: dict[str, Any] = {
    "max_steps": 9,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 1,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "learning_rate": 3e-3,
    "max_grad_norm": 1.0,
    "disable_dropout": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "weights": {"loss_type": ["bco", "beta_dpo"], "beta": 0.3, "weight_decay": 0.1, "precompute_ref_log_probs": True},
    "lora": {
        "loss_type": ["plackett_luce"],
        "sync_ref_model": True,
        "ref_model_sync_steps": 3,
        "ref_model_mixup_alpha": 0.5,
        **support.LAYOUTS["shared_packed"],
    },
    "lora_dropout": {"loss_type": ["sigmoid"], "eval_strategy": "steps", "eval_steps": 4},
}


def trainer(model_dir: str, folder: Path, kind: str, **changes: Any) -> Any:
    if kind.startswith("lora"):
        changes["peft_config"] = support.lora(lora_dropout=0.2 if kind == "lora_dropout" else 0.0)
    data = helpers.ranked_dataset(10, responses=(2, 3))
    held_out = helpers.ranked_dataset(3, seed=1)
    return support.trainer(model_dir, folder, data, eval_dataset=held_out, **{**SCHEDULE, **KINDS[kind], **changes})


class AtEvent(TrainerCallback):
    """Runs an action at the given number of training events."""

    EVENTS = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_save")

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.left, self.action = number, action

    def __getattribute__(self, name: str) -> Any:
        if name in AtEvent.EVENTS:
            self.left -= 1
            if self.left == 0:
                self.action()
        return super().__getattribute__(name)


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def logs(one: Any) -> list[dict[str, Any]]:
    """Return a run's logs without times and without the summary, which covers one call of `train`."""
    return [
        {k: v for k, v in entry.items() if not any(part in k for part in ("runtime", "per_second"))}
        for entry in one.state.log_history
        if "train_runtime" not in entry
    ]


def weights(one: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in one.model.named_parameters()}


def assert_equal(one: Any, expected: tuple[dict[str, torch.Tensor], list[dict[str, Any]]]) -> None:
    values = weights(one)
    assert values.keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert torch.equal(values[name], value), name
    assert logs(one) == expected[1]


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Freeze existing objects: `train` collects garbage, and scanning torch and TRL takes most of a tiny run's time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tiny_model_dir, tmp_path_factory):
    """Return the weights and logs of uninterrupted runs, and the folder of the LoRA run."""
    runs: dict[str, Any] = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        runs[f"{kind}_folder"] = folder
        one = trainer(tiny_model_dir, folder, kind)
        one.train()
        runs[kind] = weights(one), logs(one)
        assert len(runs[kind][1]) == 3 + 3 * (kind == "lora_dropout")
    return runs


RNG = random.Random(5)
CASES = [(sorted(KINDS)[number % 3], RNG.randint(1, 49)) for number in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "event"), CASES)
def test_killed_and_resumed(kind, event, whole, tiny_model_dir, tmp_path):
    def run() -> None:
        trainer(tiny_model_dir, tmp_path, kind, callbacks=[AtEvent(event, kill)]).train()

    assert forks.in_child(run) == signal.SIGKILL
    one = trainer(tiny_model_dir, tmp_path, kind)
    one.train(resume_from_checkpoint="true")
    assert_equal(one, whole[kind])


# Killed while a checkpoint is written


def die_at_call(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> None:
    """Replace a function by one that kills the process at the given call."""
    left, real = [number], getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            kill()
        return real(*args, **kwargs)

    patch.setattr(owner, name, call)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "number", "steps"),
    [
        (torch, "save", 7, [2, 4]),  # the optimizer of the second checkpoint
        (checkpoint_files, "write_json", 2, [2, 4]),  # its list of files
        (shutil, "rmtree", 1, [2, 4]),  # the first checkpoint, no longer needed
    ],
    ids=["optimizer", "marker", "rotation"],
)
def test_killed_while_saving_with_room_for_one_checkpoint(
    owner, name, number, steps, whole, tiny_model_dir, tmp_path, monkeypatch
):
    def run() -> None:
        die_at_call(monkeypatch, owner, name, number)
        trainer(tiny_model_dir, tmp_path, "lora_dropout", save_total_limit=1).train()

    assert forks.in_child(run) == signal.SIGKILL
    assert list(checkpoints(tmp_path)) == steps
    whole_ones = [step for step, path in checkpoints(tmp_path).items() if why_incomplete(path) is None]
    assert whole_ones == ([2, 4] if name == "rmtree" else [2])
    one = trainer(tiny_model_dir, tmp_path, "lora_dropout", save_total_limit=1)
    one.train(resume_from_checkpoint=True)
    assert_equal(one, whole["lora_dropout"])
    assert list(checkpoints(tmp_path)) == [9]
    assert why_incomplete(tmp_path / "checkpoint-9") is None
    assert torch.load(tmp_path / "checkpoint-9" / "training_args.bin", weights_only=False).save_total_limit == 1


def folder_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda p: (p / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "no state": (lambda p: (p / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "no optimizer": (lambda p: (p / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "cut weights": (
        lambda p: os.truncate(p / "adapter_model.safetensors", 1000),
        r"adapter_model.safetensors has 1000 bytes, but was written with \d+",
    ),
    "empty state": (lambda p: os.truncate(p / "trainer_state.json", 0), "trainer_state.json has 0 bytes"),
    "no list": (lambda p: (p / MARKER).unlink(), f"it has no {MARKER}, which is written last"),
    "cut list": (lambda p: os.truncate(p / MARKER, 20), f"its {MARKER} can't be read"),
    "other list": (lambda p: (p / MARKER).write_text("[1]"), f"its {MARKER}: found a list, expected a mapping"),
    "empty folder": (lambda p: (shutil.rmtree(p), p.mkdir()), f"it has no {MARKER}"),
    "no folder": (shutil.rmtree, "there is no such folder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_half_written_checkpoint_is_skipped_or_refused(kind, whole, tmp_path, caplog):
    shutil.copytree(whole["lora_folder"], tmp_path / "run")
    run = tmp_path / "run"
    assert list(checkpoints(run)) == [2, 4, 6, 8, 9]
    last = run / "checkpoint-9"
    assert find_checkpoint(True, run) == str(last)
    assert find_checkpoint(str(last), run) == str(last)
    harm, problem = DAMAGE[kind]
    harm(last)
    assert find_checkpoint(True, run) == str(run / "checkpoint-8")
    skipped = [m for m in caplog.messages if m.startswith(f"Not resuming from {last}: ")]
    assert len(skipped) == (kind != "no folder")
    with pytest.raises(
        CheckpointError, match=f"Can't resume from '{last}': {problem}.*Complete checkpoints: .*checkpoint-8"
    ):
        find_checkpoint(str(last), run)


@pytest.mark.parametrize("asked", [True, "true", "True", "latest", "last"])
def test_before_the_first_checkpoint_a_run_starts_anew(asked, tmp_path, caplog):
    assert find_checkpoint(asked, tmp_path / "nothing yet") is None
    (tmp_path / "checkpoint-3").mkdir()
    assert find_checkpoint(asked, tmp_path) is None
    assert (
        caplog.messages[-1]
        == f"resume_from_checkpoint={asked}: {tmp_path} has no complete checkpoint. Starting at step 0."
    )


@pytest.mark.parametrize("asked", [None, False, "false", "no"])
def test_no_checkpoint_is_asked_for(asked, whole):
    assert find_checkpoint(asked, whole["lora_folder"]) is None


def test_the_folder_of_the_run_is_no_checkpoint(whole):
    run = whole["lora_folder"]
    with pytest.raises(CheckpointError, match=r"Complete checkpoints: .*checkpoint-2, .*checkpoint-9\."):
        find_checkpoint(str(run), run)


def test_weights_alone_are_nothing_to_go_on_from(tiny_model_dir, tmp_path):
    one = trainer(tiny_model_dir, tmp_path, "lora", save_only_model=True, max_steps=2)
    one.train()
    with pytest.raises(CheckpointError, match="it has only the weights"):
        one.train(resume_from_checkpoint="true")


def test_rotation_keeps_what_is_whole(tmp_path):
    for step, age in ((2, 5), (4, 4), (6, 3), (8, 2), (10, 1)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step not in (4, 10):  # these two were never finished
            (folder / MARKER).write_text(json.dumps({"files": {}, "resumable": True}))
        os.utime(folder, (1e9 - age, 1e9 - age))
    (tmp_path / "checkpoint-best").mkdir()
    rotate(tmp_path, None, keep=[])
    assert list(checkpoints(tmp_path)) == [2, 4, 6, 8, 10]
    rotate(tmp_path, 4, keep=[tmp_path / "checkpoint-8"])
    assert list(checkpoints(tmp_path)) == [2, 6, 8, 10]
    rotate(tmp_path, 3, keep=[tmp_path / "checkpoint-8"])
    assert list(checkpoints(tmp_path)) == [2, 6, 8]
    rotate(tmp_path, 2, keep=[tmp_path / "checkpoint-8", tmp_path / "checkpoint-2"])  # the newest and the best
    assert list(checkpoints(tmp_path)) == [2, 8]
    rotate(tmp_path, 1, keep=[tmp_path / "checkpoint-8", tmp_path / "checkpoint-2"])
    assert list(checkpoints(tmp_path)) == [2, 8]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-8"
    assert (tmp_path / "checkpoint-best").exists()


def test_a_checkpoint_is_pushed_when_it_is_whole(tiny_model_dir, tmp_path, monkeypatch):
    one = trainer(tiny_model_dir, tmp_path, "lora", max_steps=2)
    pushed = []
    monkeypatch.setattr(engine, "push_checkpoint", lambda _, folder: pushed.append((folder, why_incomplete(folder))))
    one.args.push_to_hub = True
    monkeypatch.setattr(one, "_finish_current_push", lambda: None)
    one.train()
    assert pushed == [(tmp_path / "checkpoint-2", None)]
    assert torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False).push_to_hub


# SIGTERM


@pytest.mark.parametrize(("event", "step"), [(13, 3), (15, 4)], ids=["while accumulating", "after the step"])
def test_sigterm_writes_a_checkpoint_first(event, step, whole, tiny_model_dir, tmp_path):
    def run() -> None:
        trainer(
            tiny_model_dir, tmp_path, "lora_dropout", callbacks=[AtEvent(event, lambda: kill(signal.SIGTERM))]
        ).train()

    assert forks.in_child(run) == (128 + signal.SIGTERM) << 8
    assert newest_complete(tmp_path) == tmp_path / f"checkpoint-{step}"
    one = trainer(tiny_model_dir, tmp_path, "lora_dropout")
    one.train(resume_from_checkpoint="true")
    assert_equal(one, whole["lora_dropout"])


def test_sigterm_without_checkpoints_ends_as_ever(tiny_model_dir, tmp_path):
    def run(**changes: Any) -> int:
        one = trainer(tiny_model_dir, tmp_path, "lora", callbacks=[AtEvent(3, lambda: kill(signal.SIGTERM))], **changes)
        return forks.in_child(one.train)

    assert run(save_strategy="no") == signal.SIGTERM
    assert run(enable_jit_checkpoint=False) == signal.SIGTERM
    assert not checkpoints(tmp_path)


def test_after_training_sigterm_is_as_it_was(tiny_model_dir, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    one = trainer(tiny_model_dir, tmp_path, "lora", max_steps=1, warmup_steps=0)
    seen = []
    one.add_callback(AtEvent(1, lambda: seen.append(signal.getsignal(signal.SIGTERM))))
    one.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert seen[0] != before


def test_two_processes_end_together_and_go_on_together(tiny_model_dir, tmp_path):
    """In some steps, one process has pairs and the other has rankings."""

    def run(folder: str, **changes: Any) -> Any:
        return trainer(tiny_model_dir, tmp_path / folder, "lora_dropout", max_steps=5, eval_strategy="no", **changes)

    def stopped(rank: int) -> None:
        callbacks = [AtEvent(12, lambda: kill(signal.SIGTERM))] if rank else []
        run("stopped", callbacks=callbacks).train()

    def resumed(rank: int) -> None:
        one = run("whole")
        one.train()
        two = run("stopped")
        two.train(resume_from_checkpoint="true")
        assert two.state.global_step == 5
        assert {f"rng_state_{n}.pth" for n in range(2)} <= set(folder_of(tmp_path / "stopped" / "checkpoint-3"))
        assert_equal(two, (weights(one), logs(one)))

    assert forks.in_two_ranks(stopped) == [(128 + signal.SIGTERM) << 8] * 2
    assert newest_complete(tmp_path / "stopped") == tmp_path / "stopped" / "checkpoint-3"
    assert forks.in_two_ranks(resumed) == [0, 0]
