"""A run that is killed and resumed gives what the run that was not killed gives, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests import helpers
from tests.trainer import support

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
    "lora": {"loss_type": ["plackett_luce"], **support.LAYOUTS["shared_packed"]},
    "lora_dropout": {"loss_type": ["sigmoid"], "eval_strategy": "steps", "eval_steps": 4},
}


def trainer(model_dir: str, folder: Path, kind: str, **changes: Any) -> Any:
    if kind.startswith("lora"):
        changes["peft_config"] = support.lora(lora_dropout=0.2 if kind == "lora_dropout" else 0.0)
    data = helpers.ranked_dataset(10, responses=(2, 3))
    held_out = helpers.ranked_dataset(3, seed=1)
    return support.trainer(model_dir, folder, data, eval_dataset=held_out, **{**SCHEDULE, **KINDS[kind], **changes})


class AtEvent(TrainerCallback):
    """Does something when training has come to the given number of events."""

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


def in_child(work: Callable[[], Any]) -> int:
    """Do the work in a forked process; return its status as `os.waitpid` gives it (0, a signal, or exit code << 8)."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def logs(one: Any) -> list[dict[str, Any]]:
    """What a run logged, without times and without the summary, which is about one call of `train`."""
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


@pytest.fixture(scope="module")
def whole(tiny_model_dir, tmp_path_factory):
    """The weights and logs of runs that nothing stopped."""
    runs = {}
    for kind in KINDS:
        one = trainer(tiny_model_dir, tmp_path_factory.mktemp(kind), kind)
        one.train()
        runs[kind] = weights(one), logs(one)
        assert len(runs[kind][1]) == 3 + 3 * (kind == "lora_dropout")
    return runs


RNG = random.Random(5)
CASES = [(sorted(KINDS)[number % 3], RNG.randint(1, 49)) for number in range(10)]


@pytest.mark.parametrize(("kind", "event"), CASES)
def test_killed_and_resumed(kind, event, whole, tiny_model_dir, tmp_path):
    def run() -> None:
        trainer(tiny_model_dir, tmp_path, kind, callbacks=[AtEvent(event, kill)]).train()

    assert in_child(run) == signal.SIGKILL
    one = trainer(tiny_model_dir, tmp_path, kind)
    one.train(resume_from_checkpoint="true")
    assert_equal(one, whole[kind])
