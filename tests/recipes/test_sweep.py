"""A sweep: runs as of their own on one loaded base; stopped, it goes on; a bad grid stops before anything is loaded."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers import ROOT, ranked_rows
from trl_dpo_ext.run.sweeping.sweep import sweep_recipe
from trl_dpo_ext.run.sweeping.sweep_plan import grid_runs


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 12, 0), ("test", 8, 1)):
        rows = ranked_rows(count, seed=seed, scores=True)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def recipe(tmp_path, tiny_model_dir, data_dir):
    """Write a recipe; changes override, None removes."""

    def write(**changes):
        settings = {
            "model_name_or_path": tiny_model_dir,
            "dataset_name": str(data_dir),
            "output_dir": str(tmp_path / "sweep"),
            "ref_cache_dir": str(tmp_path / "cache"),
            "loss_type": "dpo",
            "use_peft": True,
            "lora_target_modules": "all-linear",
            "lora_dropout": 0.1,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
        return ["--config", str(path)]

    return write


SAMPLED = {"reward": f"{__name__}:vowels", "eval_prompts": 8, "eval_max_new_tokens": 4, "frontier_steps": 1}


def vowels(prompts, completions):
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]


def weights(folder):
    (file,) = [
        path for path in folder.glob("*.safetensors") if path.name in ("adapter_model.safetensors", "model.safetensors")
    ]
    return load_file(file)


def log(folder):
    """What training measured: losses, metrics and norms of every step, without times."""
    history = (
        json.loads((folder / "trainer_state.json").read_text())["log_history"]
        if (folder / "trainer_state.json").exists()
        else []
    )
    timed = ("runtime", "per_second")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return history, {key: value for key, value in metrics.items() if not any(word in key for word in timed)}


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log(one) == log(other)
    assert ({path.name for path in one.iterdir()} - {"runs"}) == ({path.name for path in other.iterdir()} - {"runs"})
    if (one / "frontier.json").exists():
        assert (one / "frontier.json").read_bytes() == (other / "frontier.json").read_bytes()


@pytest.mark.slow
def test_each_run_is_that_of_its_own_recipe(recipe, tmp_path, monkeypatch):
    """One base is loaded and the reference runs once over each text, yet each run equals one in a fresh process."""
    from trl.trainer import dpo_trainer

    from trl_dpo_ext.training import PreferenceTrainer

    loaded, computed = [], []
    create, compute = dpo_trainer.create_model_from_path, PreferenceTrainer._compute_reference
    monkeypatch.setattr(dpo_trainer, "create_model_from_path", lambda *a, **k: loaded.append(a) or create(*a, **k))
    monkeypatch.setattr(
        PreferenceTrainer, "_compute_reference", lambda self, groups: computed.extend(groups) or compute(self, groups)
    )
    args = recipe(**SAMPLED)
    folders = sweep_recipe(args, grid_runs(["beta=0.1,1", "seed=0,3"]))
    assert [folder.name for folder in folders] == [
        "beta-0.1-seed-0",
        "beta-0.1-seed-3",
        "beta-1.0-seed-0",
        "beta-1.0-seed-3",
    ]
    assert len(loaded) == 1
    assert len(computed) == 12  # the training prompts, each once
    for folder in folders[1], folders[3]:
        alone = tmp_path / f"alone-{folder.name}"
        options = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(alone)]
        # The recipe lies in a run's folder, so what runs code is named again. A cache of its own shares nothing.
        options += ["--reward", SAMPLED["reward"], "--ref_cache_dir", str(tmp_path / "other_cache")]
        command = [sys.executable, "-m", "trl_dpo_ext", "train", *options]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        assert_same_run(folder, alone)
    first, *others = (weights(folder) for folder in folders)
    for other in others:
        assert any(not torch.equal(first[name], other[name]) for name in first)
