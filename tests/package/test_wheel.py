"""The built wheel in an empty environment, without the checkout: `make test-package`. Takes minutes, most of it pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT, save_tiny_model


def run(command: list[str], **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The folder with the wheel and the sdist; the wheel is built from the sdist, as users of the index get it."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", folder, ROOT])
    return folder


@pytest.fixture(scope="session")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory) -> Path:
    """The folder of the commands of an environment with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", folder])
    run([folder / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[demo]"])
    return folder / "bin"


@pytest.fixture
def command(environment, tmp_path, monkeypatch):
    """Run a command of the environment in an empty folder."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    (work := tmp_path / "work").mkdir()
    return lambda *parts, **more: run([environment / parts[0], *parts[1:]], cwd=work, env={**clean, **more})


def tracked(*patterns: str) -> set[str]:
    return set(run(["git", "-C", ROOT, "ls-files", *patterns]).split())


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    recipes = {f"trl_dpo_ext/{name}" for name in tracked("recipes")}
    assert held == tracked("trl_dpo_ext") | recipes
    assert "trl_dpo_ext/py.typed" in held


def test_the_sdist_holds_what_a_distributor_needs(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "LICENSE", "README.md", "tests/conftest.py", "recipes/train.py", "Makefile"):
        assert name in held
    assert not {name for name in held if name.startswith((".venv", "outputs", ".git/"))}


def test_it_trains_from_an_empty_folder(command, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    assert "site-packages" in command("python", "-c", "import trl_dpo_ext; print(trl_dpo_ext.__file__)")
    assert "llama-3.1-8b/dpo" in command("trl-dpo-ext", "recipes")
    options = ["--model_name_or_path", model, "--max_steps", "2", "--eval_prompts", "2"]
    command("trl-dpo-ext", "train", "--config", "quickstart/plackett_luce", *options, "--output_dir", "one")
    command(
        "trl-dpo-ext", "train", "--config", "quickstart/simpo", *options, "--output_dir", "two",
        "--accelerate_config", "cpu_2", "--num_processes", "2",
    )  # fmt: skip
    for name in ("one", "two"):
        folder = tmp_path / "work" / name
        assert json.loads((folder / "result.json").read_text())["evaluation"]
        assert (folder / "adapter_model.safetensors").exists()


def test_the_quickstart_runs(command, tmp_path):
    out = command("trl-dpo-ext", "quickstart", "--max_steps", "2", "--eval_prompts", "4", "--output_dir", "quick")
    assert "mean reward" in out
    assert (tmp_path / "work" / "quick" / "curves.png").exists()
