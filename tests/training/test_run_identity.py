"""A checkpoint goes on only with its own run: another loss, setting, adapter or data is refused, with both values."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from datasets import Dataset

from tests import helpers
from tests.training import forks, support
from tests.training.test_resume import AtEvent
from trl_dpo_ext.data import DataError
from trl_dpo_ext.training import CheckpointError
from trl_dpo_ext.training.safety.checkpoint import checkpoints, newest_complete

ROWS = helpers.ranked_rows(6, responses=(2, 3))
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 3e-3,
    "loss_type": ["sigmoid"],
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
}


def run(
    model_dir: str, folder: Any, rows: list[dict[str, Any]] = ROWS, lora: dict[str, Any] | None = None, **changes: Any
) -> Any:
    data = changes.pop("data", None) or Dataset.from_list(rows)
    return support.trainer(model_dir, folder, data, peft_config=support.lora(**lora or {}), **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def stopped(tiny_model_dir, tmp_path_factory):
    """Return the folder of a run of four steps, with checkpoints at two and four."""
    folder = tmp_path_factory.mktemp("stopped")
    run(tiny_model_dir, folder).train()
    return folder


OTHER_RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "loss": ({"loss_type": ["ipo"]}, ['losses: then {"dpo": {', 'now {"ipo": {']),
    "loss weight": ({"loss_weights": [2.0]}, ["losses.dpo.weight: then 1.0, now 2.0"]),
    "beta": ({"beta": 0.5}, ["losses.dpo.beta: then 0.1, now 0.5"]),
    "learning rate": ({"learning_rate": 1e-3}, ["learning_rate: then 0.003, now 0.001"]),
    "schedule": ({"lr_scheduler_type": "linear"}, ['lr_scheduler_type: then "cosine", now "linear"']),
    "warm-up": ({"warmup_steps": 2}, ["warmup_steps: then 1, now 2"]),
    "optimizer": ({"optim": "adafactor"}, ['optim: then "adamw_torch', 'now "adafactor"']),
    "seed": ({"seed": 7}, ["seed: then ", "now 7"]),
    "prompts of a step": ({"gradient_accumulation_steps": 2}, ["step_prompts: then ", "now "]),
    "lora_alpha": ({"lora": {"lora_alpha": 16}}, ["adapter.default.lora_alpha: then 8, now 16"]),
    "rank": ({"lora": {"r": 2}}, ["adapter.default.r: then 4, now 2"]),
    "targets": (
        {"lora": {"target_modules": ["q_proj"]}},
        [
            'adapter.default.target_modules: then ["q_proj", "v_proj"], now ["q_proj"]',
            'trained_weights: then "8 tensors',
        ],
    ),
    "row added": (
        {"rows": [*ROWS, ROWS[0]]},
        ["training data: 1 rows added, 0 removed; the first that differs is row 6"],
    ),
    "row removed": ({"rows": ROWS[1:]}, ["training data: 0 rows added, 1 removed; the first that differs is row 0"]),
    "order": ({"rows": ROWS[::-1]}, ["training data: the same rows in another order"]),
    "one word": (
        {"rows": [*ROWS[:3], {**ROWS[3], "prompt": "another prompt"}, *ROWS[4:]]},
        ["training data: 1 rows added, 1 removed; the first that differs is row 3"],
    ),
    "two things": ({"beta": 0.5, "learning_rate": 1e-3}, ["beta: then 0.1, now 0.5", "learning_rate: then 0.003"]),
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_another_run_is_refused(what, stopped, tiny_model_dir, monkeypatch):
    settings, parts = OTHER_RUNS[what]
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as error:
        run(tiny_model_dir, stopped, **settings).train(resume_from_checkpoint=True)
    for part in (*parts, "checkpoint-4 belongs to another run", "resume_from_checkpoint"):
        assert part in str(error.value)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_it_is_refused_before_the_model_is_loaded(stopped, tiny_model_dir, monkeypatch):
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", load)
    with pytest.raises(CheckpointError, match=r"beta: then 0\.1, now 0\.5"):
        run(tiny_model_dir, stopped, beta=0.5, resume_from_checkpoint="true")


def test_what_may_change(stopped, tiny_model_dir, tmp_path, caplog):
    changes = {"max_steps": 6, "save_steps": 1, "logging_steps": 2, "run_name": "x", "packing": True}
    one = run(tiny_model_dir, tmp_path, **changes, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    one.train(resume_from_checkpoint=str(stopped / "checkpoint-4"))
    assert list(checkpoints(tmp_path)) == [5, 6]
    assert "was planned for 4 steps and is now planned for 6" in caplog.text


def test_streams_are_compared_by_their_first_rows(tiny_model_dir, tmp_path):
    def stream(rows: list[dict[str, Any]]) -> Any:
        return Dataset.from_list(rows).to_iterable_dataset()

    run(tiny_model_dir, tmp_path, data=stream(ROWS), max_steps=2).train()
    one = run(tiny_model_dir, tmp_path, data=stream(ROWS), max_steps=3)
    one.train(resume_from_checkpoint=True)
    assert one.state.global_step == 3
    with pytest.raises(CheckpointError, match=r"training data \(the first 1000 of the stream\): 1 rows added"):
        run(tiny_model_dir, tmp_path, data=stream([*ROWS, ROWS[0]])).train(resume_from_checkpoint=True)


def test_streams_are_compared_by_their_number_of_files(tiny_model_dir, tmp_path):
    def stream(files: int) -> Any:
        return Dataset.from_list(ROWS).to_iterable_dataset(num_shards=files)

    run(tiny_model_dir, tmp_path, data=stream(2), max_steps=2).train()
    with pytest.raises(CheckpointError, match="streamed_files: then 2, now 3"):
        run(tiny_model_dir, tmp_path, data=stream(3)).train(resume_from_checkpoint=True)


def test_a_fresh_start_moves_the_checkpoints_of_an_earlier_run_aside(tiny_model_dir, tmp_path, caplog):
    """Another run in the same folder is killed before its first checkpoint, and started again with the same command."""
    run(tiny_model_dir, tmp_path).train()
    (tmp_path / "result.json").write_text("{}")
    kept = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.glob("checkpoint-*/*")}

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_dir, tmp_path, beta=0.5, callbacks=[AtEvent(4, killed)]).train()
    assert not checkpoints(tmp_path)
    aside = tmp_path / "earlier-run-1"
    assert f"Moved its checkpoints and its record to {aside}" in caplog.text
    assert {p.relative_to(aside): p.read_bytes() for p in aside.glob("checkpoint-*/*")} == kept
    assert (aside / "result.json").exists()
    again = run(tiny_model_dir, tmp_path, beta=0.5)
    again.train(resume_from_checkpoint=True)
    expected = run(tiny_model_dir, tmp_path / "alone", beta=0.5)
    expected.train()
    assert again.state.log_history[0]["loss"] == expected.state.log_history[0]["loss"]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_warning(stopped, tiny_model_dir, tmp_path, caplog):
    shutil.copytree(stopped / "checkpoint-2", tmp_path / "checkpoint-2")
    state = json.loads((tmp_path / "checkpoint-2" / "run_state.json").read_text())
    for name in ("run", "epoch_ended", "grad_norm", "learning_rate"):
        del state[name]
    (tmp_path / "checkpoint-2" / "run_state.json").write_text(json.dumps(state))
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "checkpoint-2").iterdir() if p.name != "complete.json"}
    (tmp_path / "checkpoint-2" / "complete.json").write_text(json.dumps({"files": sizes, "resumable": True}))
    run(tiny_model_dir, tmp_path).train(resume_from_checkpoint=True)
    assert "doesn't say which losses, settings and data" in caplog.text
    assert "doesn't say which engine wrote it" in caplog.text


@pytest.mark.slow
def test_ranks_with_other_data_stop_together(tiny_model_dir, tmp_path):
    def other_data(rank: int) -> None:
        with pytest.raises(DataError, match=r"rows: 6 on process 0, 5 on process 1"):
            run(tiny_model_dir, tmp_path, ROWS[rank:]).train()

    assert forks.in_two_ranks(other_data) == [0, 0]


@pytest.mark.slow
def test_two_ranks_refuse_together_what_another_engine_wrote(tiny_model_dir, tmp_path):
    run(tiny_model_dir, tmp_path).train()
    marker = tmp_path / "checkpoint-4" / "complete.json"
    content = json.loads(marker.read_text())
    assert content["engine"]["name"] == "one process"
    content["engine"] |= {"name": "DeepSpeed ZeRO-2", "processes": 2}
    marker.write_text(json.dumps(content))

    def refused(rank: int) -> None:
        with pytest.raises(CheckpointError, match=r"(?s)then: DeepSpeed ZeRO-2 \(2 processes.*now:  DDP \(2 processes"):
            run(tiny_model_dir, tmp_path, per_device_train_batch_size=1).train(resume_from_checkpoint=True)

    assert forks.in_two_ranks(refused) == [0, 0]
