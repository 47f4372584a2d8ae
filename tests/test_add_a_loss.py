"""The Python blocks of docs/add_a_loss.md run, in their order, and train a model."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import ROOT, save_tiny_model
from trl_dpo_ext.losses import LOSSES, register_loss

PAGE = (ROOT / "docs" / "add_a_loss.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_code_trains_a_model(tmp_path: Path):
    model = save_tiny_model(tmp_path / "model")
    script = []
    for block in blocks("python"):
        if (name := re.match(r"# (\w+\.py)\n", block)) is not None:
            (tmp_path / name[1]).write_text(block)
        else:
            script.append(block)
    assert len(script) == 4
    code = "\n".join(script)
    assert code.count('"HuggingFaceTB/SmolLM2-135M-Instruct"') == 1
    code = code.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(model))
    # Beyond the page: that the loss was trained is in the log, under the name it was given.
    code += "\nprint('LOG ' + __import__('json').dumps(trainer.state.log_history))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    log = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("LOG "))[4:])
    assert log[-1]["train_loss"] > 0
    assert log[-1]["step"] == 2


def test_the_entry_point_group_is_the_registry_s():
    (group,) = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    assert group == LOSSES.entry_point_group


def test_every_declaration_is_in_the_table():
    import inspect

    table = PAGE.partition("## 6.")[2].partition("## 7.")[0]
    declarations = [name for name in inspect.signature(register_loss).parameters if name != "name"]
    assert [name for name in declarations if f"`{name}=" not in table] == []


def test_the_options_of_the_command_exist():
    (command,) = blocks("bash")
    for path in re.findall(r"recipes/\S+", command):
        assert (ROOT / path).exists(), path
    assert "import_module" in (ROOT / "trl_dpo_ext" / "run" / "recipe_settings.py").read_text()
