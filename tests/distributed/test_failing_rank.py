"""`trl-dpo-ext train` with two processes of which one fails: both end, and its sentence is the last on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests import helpers

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tmp_path, tiny_model_dir):
    """Launch a recipe whose process 1 fails in some way; return its exit code and what is on the terminal."""

    def launched(what: str, **changes) -> tuple[int, str]:
        rows = tmp_path / "data"
        rows.mkdir()
        for split in ("train", "test"):
            lines = [json.dumps(row) for row in helpers.pair_rows(8)]
            (rows / f"{split}.jsonl").write_text("\n".join(lines))
        settings = {
            "model_name_or_path": tiny_model_dir,
            "dataset_name": str(rows),
            "output_dir": str(tmp_path / "out"),
            "import_module": ["tests.distributed.failing"],
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "disable_tqdm": True,
            **changes,
        }
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "trl_dpo_ext", "train", "--config", str(recipe)]
        environment = {"FAILS": what, "PYTHONPATH": os.pathsep.join([str(helpers.ROOT), *sys.path])}
        done = subprocess.run(
            [*command, "--accelerate_config", "cpu_2", "--num_processes", "2"],
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            cwd=helpers.ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        return done.returncode, done.stderr

    return launched


def last_lines(terminal: str, count: int = 1) -> str:
    return "\n".join(terminal.rstrip().splitlines()[-count:])


def test_a_bad_row_on_one_rank(launch):
    code, terminal = launch("row")
    assert code == 2
    assert "Traceback" not in terminal
    end = terminal[terminal.rindex("\nerror: ") :]
    assert "train dataset: 1 of 8 rows" in end
    assert "prompt" in end
    assert "row 3" in end


def test_a_full_disk_on_one_rank(launch, tmp_path):
    code, terminal = launch("disk", save_strategy="steps", save_steps=1)
    assert code == 2
    assert "Traceback" not in terminal
    last = last_lines(terminal)
    assert last.startswith("error: ")
    assert "checkpoint-1 can't be written: Process 1: No space left on device." in last
    assert terminal.count("error: ") == 3  # each process, and once more at the end
    assert not (tmp_path / "out" / "checkpoint-1").exists()


def test_an_exception_in_a_reward(launch):
    """Somebody's own code: its traceback is of use, and stands once, above the sentence."""
    code, terminal = launch("reward", reward="tests.distributed.failing:reward", eval_prompts=4, eval_max_new_tokens=2)
    assert code == 1
    assert terminal.count("Traceback") == 1
    assert "in reward" in terminal
    assert last_lines(terminal, 2) == "error: process 1: KeyError: 'no such word'\nIts traceback is above."


def test_a_process_that_no_signal_reaches_ends_too(launch):
    code, terminal = launch("deaf")
    assert code == 2
    assert "Traceback" not in terminal
    assert "Stopped, because another process of this run has failed." in terminal  # before torchrun kills it
    assert last_lines(terminal) == "error: only process 1 has this."


def test_a_process_that_is_killed_says_nothing_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, time\nos.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(1000)\n")
    config = helpers.ROOT / "recipes" / "accelerate" / "cpu_2.yaml"
    arguments = ["--config_file", str(config), "--main_process_port", str(helpers.free_port()), str(script)]
    code = f"from trl_dpo_ext._compat.accelerate import launch; raise SystemExit(launch({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=helpers.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + 9
    assert last_lines(done.stderr) == "Process 1 was ended by SIGKILL. Often the machine has run out of memory."
