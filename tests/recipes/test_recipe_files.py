"""The recipes that come with the package, from the checkout or from a built wheel without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers import ROOT, save_tiny_model
from trl_dpo_ext import cli
from trl_dpo_ext.parsing import ParseError
from trl_dpo_ext.run import recipe_files

NAMES = [recipe.name for recipe in recipe_files.list_recipes()]


def test_each_preference_recipe_is_listed():
    files = [p for p in (ROOT / "recipes").glob("*/*.yaml") if "\nloss_type:" in p.read_text()]
    assert len(files) > 20
    assert sorted(NAMES) == sorted(f"{p.parent.name}/{p.stem}" for p in files)


def test_a_name_is_found_with_and_without_its_ending():
    path = ROOT / "recipes" / "qwen3-8b" / "simpo.yaml"
    assert recipe_files.find_recipe("qwen3-8b/simpo").path == path
    assert recipe_files.find_recipe("qwen3-8b/simpo.yaml").path == path


def test_the_data_of_a_packaged_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = recipe_files.resolve_config(["--config=quickstart/simpo", "--seed", "1"])
    data = str(ROOT / "recipes" / "quickstart" / "data")
    assert args == [
        "--config", str(ROOT / "recipes" / "quickstart" / "simpo.yaml"), "--dataset_name", data, "--seed", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [["--dataset_name", "mine"], ["--dataset_name=mine"]])
def test_an_option_wins_over_the_packaged_path(given):
    assert recipe_files.resolve_config(["--config", "quickstart/simpo", *given])[2:] == given


def test_a_file_wins_over_a_packaged_recipe(tmp_path, monkeypatch):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "simpo").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    args = ["--config", "quickstart/simpo"]
    assert recipe_files.resolve_config(args) == args


def test_an_unknown_recipe_names_the_nearest(capsys):
    assert cli.main(["train", "--config", "qwen3-8b/simpos"]) == 2
    error = capsys.readouterr().err
    assert "'qwen3-8b/simpos' does not exist" in error
    assert "qwen3-8b/simpo'" in error


def test_accelerate_configs_are_found_by_name_and_by_path(tmp_path):
    assert recipe_files.find_accelerate_config("fsdp2") == ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
    (own := tmp_path / "own.yaml").write_text("num_processes: 1\n")
    assert recipe_files.find_accelerate_config(str(own)) == own
    with pytest.raises(ParseError, match="Did you mean 'fsdp2'"):
        recipe_files.find_accelerate_config("fsdp3")


def test_processes_without_a_launcher_are_refused(capsys):
    assert cli.main(["train", "--config", "qwen3-8b/simpo", "--num_processes", "2"]) == 2
    assert "--accelerate_config" in capsys.readouterr().err


def test_the_launch_goes_through_accelerate(monkeypatch):
    launched = []
    monkeypatch.setattr("trl_dpo_ext._compat.accelerate.launch", lambda arguments: launched.append(arguments) or 7)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    options = ["--accelerate_config", "zero3", "--num_processes", "4", "--seed", "3"]
    assert cli.main(["train", "--config", "qwen3-8b/simpo", *options]) == 7
    recipes = ROOT / "recipes"
    config, recipe = recipes / "accelerate" / "zero3.yaml", recipes / "qwen3-8b" / "simpo.yaml"
    script = ["--config_file", str(config), "--num_processes", "4", str(recipes / "train.py")]
    assert launched == [[*script, "--config", str(recipe), "--seed", "3"]]


@pytest.mark.parametrize(
    ("config", "processes", "gpus", "said"),
    [
        ("single_gpu", "2", 2, ["--num_processes 2", "single_gpu.yaml", "one process whatever the number", "ddp"]),
        ("cpu", "2", 0, ["cpu.yaml", "cpu_2"]),
        ("two_nodes", "3", 8, ["--num_processes 3", "2 machines", "multiple of 2"]),
        ("ddp", "0", 1, ["--num_processes 0", "at least one"]),
        ("ddp", "3", 2, ["3 processes", "2 GPUs are visible", "--num_processes 2"]),
        ("ddp", None, 1, ["ddp.yaml says num_processes: 2", "1 GPU is visible", "--num_processes 1"]),
        ("two_nodes", "6", 2, ["3 processes on this machine", "--num_processes 4"]),
        ("fsdp2", "2", 0, ["fsdp2.yaml", "FSDP", "shows none", "cpu_2"]),
        ("zero2", None, 0, ["DEEPSPEED", "shows none"]),
    ],
)
def test_a_number_of_processes_that_does_not_fit(config, processes, gpus, said, monkeypatch, capsys):
    monkeypatch.setattr("trl_dpo_ext._compat.accelerate.launch", lambda arguments: pytest.fail("launched"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    number = [] if processes is None else ["--num_processes", processes]
    assert cli.main(["train", "--config", "qwen3-8b/simpo", "--accelerate_config", config, *number]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error


def test_the_sentence_of_two_failed_processes_is_the_last_thing_on_the_terminal(tiny_model_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "", "rejected": "c"}\n')
    recipe = tmp_path / "recipe.yaml"
    settings = {"model_name_or_path": tiny_model_dir, "dataset_name": str(rows), "output_dir": str(tmp_path / "out")}
    settings |= {"bf16": False, "dtype": "float32"}
    recipe.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    command = [sys.executable, "-m", "trl_dpo_ext", "train", "--config", str(recipe), "--accelerate_config", "cpu_2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *before, last = done.stderr.split("error: train dataset: ")
    assert len(before) in (2, 3)  # of one process or both, and once more at the end
    assert last.startswith("1 of 2 rows")
    assert not re.search("^[EW][0-9]{4}", last, re.MULTILINE)  # no log of torchrun's


def test_recipes_lists_and_shows(capsys):
    assert cli.main(["recipes"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in NAMES)
    assert cli.main(["recipes", "qwen3-8b/simpo"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "qwen3-8b" / "simpo.yaml").read_text()


def test_a_copy_has_the_data_that_the_recipe_names(tmp_path, capsys):
    assert cli.main(["recipes", "quickstart/simpo", "--copy", str(tmp_path)]) == 0
    copied = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert copied == {
        "recipes/quickstart/simpo.yaml",
        *(f"recipes/quickstart/data/{name}" for name in ("README.md", "train.jsonl.gz", "test.jsonl.gz")),
    }
    (tmp_path / "recipes" / "quickstart" / "simpo.yaml").write_text("mine\n")
    assert cli.main(["recipes", "quickstart/simpo", "--copy", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "recipes" / "quickstart" / "simpo.yaml").read_text() == "mine\n"


def test_copy_without_a_name_is_refused(tmp_path, capsys):
    assert cli.main(["recipes", "--copy", str(tmp_path)]) == 2
    assert "name of a recipe" in capsys.readouterr().err


def test_the_quickstart_leaves_a_finished_run_alone(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{}")
    assert cli.main(["quickstart", "--output_dir", str(tmp_path)]) == 0
    assert "--overwrite" in capsys.readouterr().out


@pytest.mark.slow
def test_an_installed_package_trains_without_the_checkout(tmp_path):
    """The files of the wheel's `recipes` are laid out by hand, as hatch does; tests/package builds a real wheel."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    shutil.copytree(ROOT / "trl_dpo_ext", site / "trl_dpo_ext")
    shutil.copytree(ROOT / "recipes", site / "trl_dpo_ext" / "recipes")
    model = save_tiny_model(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "trl_dpo_ext", "train", "--config", "quickstart/simpo", "--model_name_or_path", model,
         "--max_steps", "2", "--eval_prompts", "2", "--use_cpu", "true"],
        cwd=work, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((work / "outputs" / "quickstart-simpo" / "result.json").read_text())
    assert record["recipe"]["dataset_name"] == str(site / "trl_dpo_ext" / "recipes" / "quickstart" / "data")
