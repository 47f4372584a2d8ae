"""A sweep: runs as of their own on one loaded base; stopped, it goes on; a bad grid stops before anything is loaded."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from trl.trainer import dpo_trainer

from tests.helpers import ROOT
from trl_dpo_ext.cli import main
from trl_dpo_ext.parsing import ParseError
from trl_dpo_ext.run import train_recipe
from trl_dpo_ext.run.sweeping.shared_base import SharedBase
from trl_dpo_ext.run.sweeping.sweep import sweep_recipe
from trl_dpo_ext.run.sweeping.sweep_plan import grid_runs, named_runs, plan_sweep
from trl_dpo_ext.training import PreferenceTrainer, TrainingError


@pytest.fixture(scope="module")
def data_dir(ranked_data):
    return ranked_data(8)


@pytest.fixture
def recipe(write_recipe, data_dir, tmp_path):
    """Write a recipe; changes override, None removes."""
    return partial(
        write_recipe,
        dataset_name=str(data_dir),
        output_dir=str(tmp_path / "sweep"),
        ref_cache_dir=str(tmp_path / "cache"),
        loss_type="dpo",
        lora_dropout=0.1,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_steps=3,
    )


SAMPLED = {"reward": f"{__name__}:vowels", "eval_prompts": 8, "eval_max_new_tokens": 4, "frontier_steps": 1}


def vowels(prompts, completions):
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]


def weights(folder):
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else folder / "model.safetensors")


def measured(folder):
    """What training measured, without times."""
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return {key: value for key, value in metrics.items() if "runtime" not in key and "per_second" not in key}


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert measured(one) == measured(other)
    assert ({path.name for path in one.iterdir()} - {"runs"}) == ({path.name for path in other.iterdir()} - {"runs"})
    if (one / "frontier.json").exists():
        assert (one / "frontier.json").read_bytes() == (other / "frontier.json").read_bytes()


@pytest.mark.slow
def test_each_run_is_that_of_its_own_recipe(recipe, tmp_path, monkeypatch):
    """One base is loaded and the reference runs once over each text, yet each run equals one in a fresh process."""
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


def test_full_fine_tuning_starts_from_the_same_weights(recipe, tmp_path):
    args = recipe(use_peft=None, lora_target_modules=None, lora_dropout=None, learning_rate=1e-3)
    one, _ = sweep_recipe(args, {"one": {"max_steps": 2}, "other": {"max_steps": 1}})
    train_recipe([*args, "--max_steps", "2", "--output_dir", str(tmp_path / "alone")])
    assert_same_run(one, tmp_path / "alone")
    assert not (tmp_path / "cache").exists()


def test_a_base_that_draws_random_weights_is_loaded_for_each_run(recipe, tmp_path, tiny_model_dir, monkeypatch):
    """Weights that the files lack depend on the seed."""
    loaded, create = [], dpo_trainer.create_model_from_path

    def drawing(*args, **options):
        loaded.append(torch.rand(1).item())
        return create(*args, **options)

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", drawing)
    sweep_recipe(recipe(max_steps=1), grid_runs(["seed=0,1"]))
    assert len(set(loaded)) == 2


def test_copies_of_a_base_share_weights_and_nothing_else(tiny_model_dir):
    base, create = SharedBase(), dpo_trainer.create_model_from_path
    first, second = (base._load(create, tiny_model_dir, dtype="float32") for _ in range(2))
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    assert all(theirs[name] is weight for name, weight in ours.items())
    assert {id(module) for module in first.modules()}.isdisjoint(id(module) for module in second.modules())
    assert first.config is not second.config
    first.requires_grad_(False)
    third = base._load(create, tiny_model_dir, dtype="float32")
    assert all(weight.requires_grad for weight in third.parameters())
    other = base._load(create, tiny_model_dir, dtype="bfloat16")
    assert other.dtype == torch.bfloat16


KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from trl_dpo_ext.training import PreferenceTrainer
from trl_dpo_ext.cli import main
train, begun = PreferenceTrainer.train, []

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if len(begun) == 2 and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

def train_and_kill(self, *args, **kwargs):
    begun.append(self)
    self.add_callback(Kill())
    return train(self, *args, **kwargs)

PreferenceTrainer.train = train_and_kill
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on(recipe, tmp_path, caplog):
    """Killed in its second run, after a checkpoint: the first run stays, the second goes on and ends as it would."""
    args = recipe(save_strategy="steps", save_steps=1, **SAMPLED)
    command = [sys.executable, "-c", KILLED, "sweep", args[1], "--grid", "beta=0.1,1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    first, second = tmp_path / "sweep" / "beta-0.1", tmp_path / "sweep" / "beta-1.0"
    assert (second / "checkpoint-1").exists()
    assert not (second / "result.json").exists()
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    assert sweep_recipe(args, grid_runs(["beta=0.1,1"])) == [first, second]
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    (whole,) = sweep_recipe([*args, "--output_dir", str(tmp_path / "whole")], grid_runs(["beta=1"]))
    result = json.loads((second / "result.json").read_text())
    assert result["metrics"]["train_runtime"] > 0
    first_weights, second_weights = weights(second), weights(whole)
    assert all(torch.equal(first_weights[name], second_weights[name]) for name in first_weights)
    assert (second / "frontier.json").read_bytes() == (whole / "frontier.json").read_bytes()


def test_the_command_compares_the_runs(recipe, tmp_path, capsys):
    args = recipe(**SAMPLED, max_steps=1)
    assert main(["sweep", args[1], "--grid", "beta=0.1,1"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 runs are finished." in printed
    assert "Mean reward within a budget of KL" in printed
    for name in ("frontier.png", "frontier.csv", "budgets.csv"):
        assert (tmp_path / "sweep" / name).stat().st_size > 0
    assert "beta-1.0,dpo" in (tmp_path / "sweep" / "frontier.csv").read_text()

    # Started again with other settings, it names them and touches nothing.
    assert main(["sweep", args[1], "--grid", "beta=0.1,1", "--max_steps", "2"]) == 2
    assert "holds a finished run with other settings: max_steps was 1 and is 2" in capsys.readouterr().err


def test_named_runs_change_what_their_file_says(recipe, tmp_path):
    file = tmp_path / "runs.yaml"
    file.write_text("a: {loss_type: simpo, loss_kwargs: {simpo: {beta: 3.0}}}\nb: {loss_type: [dpo, sft], beta: 0.2}\n")
    a, b = plan_sweep(recipe(), named_runs(str(file)))
    assert a.folder == tmp_path / "sweep" / "a"
    assert a.recipe.config.loss_kwargs == {"simpo": {"beta": 3.0}}
    assert not a.recipe.config.precompute_ref_log_probs  # it reads no reference
    assert b.recipe.config.loss_type == ["dpo", "sft"]
    assert b.recipe.config.precompute_ref_log_probs


@pytest.mark.parametrize(
    ("changes", "stored"),
    [({}, True), ({"precompute_ref_log_probs": False}, False), ({"sync_ref_model": True}, False)],
)
def test_reference_log_probs_are_stored_where_they_can_be(changes, stored, recipe):
    (run,) = plan_sweep(recipe(**changes), grid_runs(["beta=0.5"]))
    assert run.recipe.config.precompute_ref_log_probs == stored


BAD = {
    "unknown key": (["btea=0.1,1"], "The swept key 'btea' is no setting of a recipe. Did you mean 'beta'?"),
    "out of range": (["beta=0.1,-1", "seed=0,1"], "beta"),
    "the same twice": (["beta=0.1,1e-1"], "beta=1e-1 occurs twice"),
    "no values": (["beta"], "'beta' isn't a key with values"),
    "an empty value": (["beta=0.1,"], "isn't a key with values"),
    "a key twice": (["beta=0.1", "beta=1"], "beta is given twice"),
    "of the process": (["tf32=true,false"], "tf32 can't differ between the runs of a sweep"),
    "of the sweep": (["output_dir=a,b"], "output_dir can't be swept"),
    "no number": (["learning_rate=1e-3,fast"], "learning_rate"),
    "a broken list": (["loss_type=[dpo"], "is no list or mapping"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_grid_stops_before_anything_is_loaded(case, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trl_dpo_ext.run.training_run.load_recipe_splits", lambda *a: pytest.fail("data loaded"))
    grid, message = BAD[case]
    assert main(["sweep", recipe()[1], "--grid", *grid]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count(message) == 1  # once, not for each combination
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"push_to_hub": True}, [], "push_to_hub has no place in a sweep"),
        ({"resume_from_checkpoint": True}, [], "resume_from_checkpoint has no place in a sweep"),
        ({}, ["--overwrite_output_dir", "true"], "overwrite_output_dir has no place in a sweep"),
        ({}, ["--beta", "0.3"], "beta is swept and given as an option"),
        ({}, ["--stop_early"], "Stopping early goes by the frontier"),
    ],
)
def test_what_has_no_place_in_a_sweep(changes, options, message, recipe, capsys):
    assert main(["sweep", recipe(**changes)[1], "--grid", "beta=0.1,1", *options]) == 2
    assert message in capsys.readouterr().err


def test_either_a_grid_or_named_runs(recipe, capsys):
    assert main(["sweep", recipe()[1]]) == 2
    assert "--grid KEY=VALUE,VALUE ..., or as --runs FILE" in capsys.readouterr().err


def test_several_processes_are_refused(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParseError, match="trains in one process"):
        sweep_recipe(recipe(), grid_runs(["beta=0.1,1"]))


def test_values_become_names_of_folders(recipe):
    names = [run.name for run in plan_sweep(recipe(), grid_runs(["learning_rate=1e-5,0.00010,3e-1"]))]
    assert names == ["learning_rate-1e-05", "learning_rate-0.0001", "learning_rate-0.3"]
    plan = plan_sweep(recipe(), grid_runs(['loss_kwargs={"dpo": {"beta": 0.1}},{"dpo": {"beta": 0.2}}']))
    assert len({run.folder for run in plan}) == 2
    assert all(run.name.replace("-", "").replace("_", "").replace(".", "").isalnum() for run in plan)


@pytest.mark.slow
def test_a_run_that_fails_does_not_end_the_sweep(recipe, tmp_path, caplog):
    args = recipe(max_steps=2)
    with pytest.raises(TrainingError, match="1 of 2 runs failed: huge"):
        sweep_recipe(args, {"huge": {"learning_rate": 1e30}, "fine": {"learning_rate": 0.01}})
    assert (tmp_path / "sweep" / "fine" / "result.json").exists()
    assert not (tmp_path / "sweep" / "huge" / "result.json").exists()


def test_a_run_of_another_process_is_left_to_it(recipe, tmp_path, caplog):
    holder = (
        "import sys, time; from trl_dpo_ext.training.safety.output_folder import held\n"
        "with held(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "sweep" / "beta-0.1")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            folders = sweep_recipe(recipe(max_steps=1), grid_runs(["beta=0.1,1"]))
        finally:
            other.kill()
    assert [folder.name for folder in folders] == ["beta-1.0"]
    assert "Another run is using" in caplog.text


def test_trackers_get_an_entry_for_each_run(recipe, monkeypatch):
    ended = []
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(finish=lambda: ended.append("trackio")))
    monkeypatch.setattr("trl_dpo_ext.run.sweeping.sweep.train_recipe", lambda *a, **k: ended.append("run"))
    sweep_recipe(recipe(), grid_runs(["beta=0.1,1"]))
    assert ended == ["run", "trackio", "run", "trackio"]


def test_a_run_behind_the_frontier_is_stopped(recipe, tmp_path, capsys):
    SCRIPTED.clear()
    SCRIPTED.extend([0.0, 5.0, 5.0, 5.0, 5.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    changes = {**SAMPLED, "reward": f"{__name__}:scripted", "max_steps": 4}
    good, bad = sweep_recipe(recipe(**changes), {"good": {"seed": 0}, "bad": {"seed": 1}}, stop_early=True)
    assert not (good / "stopped.json").exists()
    stopped = json.loads((bad / "stopped.json").read_text())
    assert stopped["step"] == 2
    assert [point["step"] for point in stopped["points"]] == [1, 2]
    assert all(point["behind"]["low"] > 0 for point in stopped["points"])
    assert [point["step"] for point in json.loads((bad / "frontier.json").read_text())["points"]] == [0, 1, 2]
    assert json.loads((good / "result.json").read_text())["metrics"]["step"] == 4
    assert (bad / "adapter_model.safetensors").exists()


SCRIPTED = []


def scripted(prompts, completions):
    """The rewards of the points in the order in which they are taken, with a little noise."""
    level = SCRIPTED.pop(0)
    return [level + 0.01 * (number % 3) for number in range(len(prompts))]
