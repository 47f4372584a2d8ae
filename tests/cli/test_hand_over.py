"""`eval lm-eval` and `eval rewardbench`: the commands that they print and run, noted by programs of those names."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest

from tests.hub import support
from trl_dpo_ext.cli import main


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Put programs named lm_eval and rewardbench on the path; return the file that they write their arguments to."""
    folder, noted = tmp_path / "bin", tmp_path / "arguments.json"
    folder.mkdir()
    script = f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open({str(noted)!r}, 'w'))\n"
    for name in ("lm_eval", "rewardbench"):
        (folder / name).write_text(script + "sys.exit(3 if '--fail' in sys.argv else 0)\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return noted


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model_dir):
    folder = tmp_path_factory.mktemp("run")
    support.save_adapter(folder, tiny_model_dir)
    support.add_record(folder)
    return folder


def test_an_adapter_is_evaluated_on_its_base_quantized_as_in_training(programs, adapter, tiny_model_dir, capsys):
    code = main(["eval", "lm-eval", str(adapter), "--tasks", "ifeval,gsm8k", "--output", "out", "--pass-on=--limit 5"])
    assert code == 0
    arguments = json.loads(programs.read_text())
    assert shlex.split(capsys.readouterr().out) == ["lm_eval", *arguments]
    given = dict(part.split("=") for part in arguments[arguments.index("--model_args") + 1].split(","))
    assert given == {
        "pretrained": tiny_model_dir,
        "peft": str(adapter),
        "tokenizer": str(adapter),
        "dtype": "float32",
        "load_in_4bit": "True",
        "bnb_4bit_quant_type": "nf4",
    }
    assert "--apply_chat_template" in arguments
    assert arguments[-4:] == ["--output_path", "out", "--limit", "5"]
    assert arguments[arguments.index("--tasks") + 1] == "ifeval,gsm8k"


def test_a_whole_model_is_its_folder(programs, tiny_model_dir):
    assert main(["eval", "lm-eval", tiny_model_dir, "--tasks", "ifeval"]) == 0
    arguments = json.loads(programs.read_text())
    assert arguments[arguments.index("--model_args") + 1] == f"pretrained={tiny_model_dir}"


def test_a_command_is_printed_without_being_run(programs, tiny_model_dir, capsys):
    assert main(["eval", "rewardbench", tiny_model_dir, "--reference", "a/b", "--print"]) == 0
    assert not programs.exists()
    printed = shlex.split(capsys.readouterr().out)
    assert printed[:4] == ["rewardbench", f"--model={tiny_model_dir}", "--ref_model=a/b", "--not_quantized"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lm-eval", "MODEL", "--tasks", "x", "--pass-on=--fail"], "lm_eval ended with exit code 3"),
        (["rewardbench", "ADAPTER", "--reference", "a/b"], "Merge it first: trl-dpo-ext merge"),
        (["lm-eval", "with,comma", "--tasks", "x"], "holds a comma or an equals sign"),
    ],
)
def test_what_cannot_be_handed_over_is_said(arguments, said, programs, adapter, tiny_model_dir, capsys):
    places = {"MODEL": tiny_model_dir, "ADAPTER": str(adapter)}
    assert main(["eval", *(places.get(argument, argument) for argument in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_program_is_said_with_the_command(tiny_model_dir, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["eval", "lm-eval", tiny_model_dir, "--tasks", "ifeval"]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("lm_eval --model hf")
    assert 'lm_eval is not installed: pip install "lm-eval[hf]"' in shown.err
