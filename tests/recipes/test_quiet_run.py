"""A default run prints no warning that its user can do nothing about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from dataclasses import fields

import pytest
import yaml

from tests import helpers
from tests.training import support
from trl_dpo_ext.training import PreferenceConfig

pytestmark = pytest.mark.slow

# Transformers 5.23 calls it activation checkpointing, and still takes the former name.
CHECKPOINTING = [
    field.name
    for field in fields(PreferenceConfig)
    if field.name in ("gradient_checkpointing", "activation_checkpointing")
]
WARNING = re.compile(r"^.*(?:Warning|deprecated|WARNING|Failed to load|pin_memory).*$", re.MULTILINE)


@pytest.mark.parametrize("checkpointing", [*CHECKPOINTING, None])
def test_no_warning_in_a_run_with_an_adapter(checkpointing, tiny_model_dir, tmp_path):
    rows = tmp_path / "train.jsonl"
    helpers.ranked_dataset(8).to_json(rows)
    recipe = {
        "model_name_or_path": tiny_model_dir,
        "dataset_name": str(rows),
        "output_dir": str(tmp_path / "out"),
        "loss_type": "plackett_luce",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "max_steps": 2,
        "bf16": False,
        "report_to": "none",
    }
    if checkpointing is not None:
        recipe[checkpointing] = True
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "recipes/train.py", "--config", str(tmp_path / "recipe.yaml")]
    # Accelerate before 1.15 imports DeepSpeed where it is installed, which warns of a machine without a GPU.
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=helpers.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "result.json").exists()
    assert WARNING.findall(done.stdout + done.stderr) == []


@pytest.mark.parametrize("name", CHECKPOINTING)
@pytest.mark.parametrize("value", [True, False])
def test_both_names_of_checkpointing_work(name, value, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = support.config(tmp_path, **{name: value})
    assert [getattr(args, each) for each in CHECKPOINTING] == [value] * len(CHECKPOINTING)


def test_checkpointing_is_on_by_default_as_in_trl(tmp_path):
    """TRL's default is the former name; the run must not lose it."""
    code = (
        "import sys; from trl_dpo_ext import PreferenceConfig; "
        "print(PreferenceConfig(sys.argv[1], use_cpu=True, bf16=False).gradient_checkpointing)"
    )
    assert helpers.run_python("-W", "error::FutureWarning", "-c", code, str(tmp_path)).split() == ["True"]
