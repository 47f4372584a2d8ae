"""Recipes with values of wrong types and ranges, and YAML with bytes changed: taken, or refused in a sentence.

`ATTACK_SECONDS` sets how long the two random tests run.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import ModelConfig

from trl_dpo_ext import PreferenceConfig
from trl_dpo_ext.run import USER_ERRORS, RecipeArguments, parse_recipe
from trl_dpo_ext.strict_yaml import YamlError, dump_yaml, parse_yaml

SECONDS = float(os.environ.get("ATTACK_SECONDS", "15"))
FIELDS = [f.name for kind in (RecipeArguments, PreferenceConfig, ModelConfig) for f in dataclasses.fields(kind)]
# What these name is imported, connected to, or a folder that is written to.
LEFT_OUT = {"import_module", "ddp_backend", "deepspeed", "local_rank", "output_dir", "fsdp", "fsdp_config"}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.5, 1e-6, 1e300, float("inf"), float("nan"), 10**30, 2**32),
    *(
        "",
        "nope",
        "1",
        "-1",
        "true",
        "none",
        "a=b",
        "null",
        "\u00e9",
        "x" * 3000,
        "{}",
        "[",
        '{"a": 1}',
        "/",
        "..",
        "~",
    ),
    *([], {}, [1], ["nope"], [None], [[]], {"a": 1}, {"a": {"b": []}}, {"": None}, [{}], ["a", 1, None]),
]
GOOD = {
    "model_name_or_path": "nowhere/model",
    "dataset_name": "nowhere/data",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "use_peft": True,
}


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse a recipe's text and return "taken", or "refused" if it is refused in a sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(text: str | bytes) -> str:
        Path("recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
        try:
            parse_recipe(["--config", "recipe.yaml"])
        except USER_ERRORS:
            return "refused"
        except BaseException as error:
            pytest.fail(f"{type(error).__name__}: {error}, raised by {text[:2000]!r}")
        return "taken"

    return run


def recipe(**changes: Any) -> str:
    return dump_yaml({**GOOD, "output_dir": "out", **changes})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("load_best_model_at_end: {}", "expected true or false"),
        ("packing:", "expected true or false"),
        ("learning_rate:", "expected float"),
        ("seed: 1:30", "'1:30' is not valid"),
        ("max_steps: 1\nmax_steps: 2", "line 9: the key 'max_steps' occurs twice, first in line 8"),
        ("1: 2", "line 8: the key 1 is not text"),
        ("loss_kwargs: {1: {beta: 1}}", "the key 1 is not text"),
        ("loss_kwargs: &a {dpo: *a}", "alias"),
        ("run_name: !!python/name:os.system", "tag"),
        ("env: 5", "env must map"),
        ("env: {a: [1]}", "env: 'a'"),
        ("lora_r: 0", "lora_r=0 is out of range. Expected >= 1."),
        ("lora_dropout: 2", "lora_dropout=2.0 is out of range. Expected >= 0, < 1."),
        ("lora_alpha: 0", "lora_alpha=0"),
        ("seed: -1", "seed=-1"),
        ("seed: 4294967296", "seed=4294967296"),
        ("eval_seed: -1", "eval_seed=-1"),
        ("adam_beta1: 2", "adam_beta1=2.0"),
        ("adam_epsilon: -1", "adam_epsilon=-1.0"),
        ("max_grad_norm: -1", "max_grad_norm=-1.0"),
        ("weight_decay: .nan", "weight_decay=nan is out of range. Expected a finite number, >= 0."),
        ("learning_rate: .inf", "learning_rate=inf"),
        ("eval_max_new_tokens: 0", "eval_max_new_tokens=0"),
        ("dataset_num_proc: 0", "dataset_num_proc=0"),
        ("report_to: nope", "'nope' is unknown"),
        ("attn_implementation: nope", "attn_implementation='nope' is unknown"),
        ("bnb_4bit_quant_type: nope", "'nope' is unknown"),
        ("dataloader_multiprocessing_context: nope", "'nope' is unknown"),
        ("lora_task_type: nope", "'nope' is unknown"),
        ("torch_compile_mode: nope", "torch_compile_mode='nope' is unknown"),
        ("torch_compile_backend: nope", "torch_compile_backend='nope' is unknown"),
        ("gradient_checkpointing_kwargs: {use_reentrent: 1}", "Did you mean 'use_reentrant'"),
        ("dataloader_persistent_workers: true", "persistent_workers option needs num_workers > 0"),
        ("f_alpha_divergence_coef: .nan", "f_alpha_divergence_coef=nan is out of range. Expected a finite number."),
        ("lora_r: 10000000000000000000", "lora_r=10000000000000000000 is out of range."),
        ("optim_args: nope", "optim_args='nope'"),
        ("lr_scheduler_kwargs: {nope: 1}", "lr_scheduler_kwargs={'nope': 1}"),
        ("lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {lr_end: 5}", "lr_end"),
    ],
)
def test_it_is_said_with_file_and_line(line, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = dump_yaml({name: value for name, value in GOOD.items() if name != line.split(":")[0]})
    Path("recipe.yaml").write_text(f"{text}output_dir: out\n{line}\n")
    with pytest.raises(USER_ERRORS) as caught:
        parse_recipe(["--config", "recipe.yaml"])
    assert said in str(caught.value)


def test_yaml_is_that_of_version_1_2(tmp_path):
    text = "a: 010\nb: 1:30\nc: 1e-6\nd: yes\ne: 2024-01-01\nf: 0o10\ng: .inf\nh: ~\ni: 'no'\nj: 1_000\n"
    assert parse_yaml(text, "x").values == {
        "a": 10,
        "b": "1:30",
        "c": 1e-6,
        "d": "yes",
        "e": "2024-01-01",
        "f": 8,
        "g": float("inf"),
        "h": None,
        "i": "no",
        "j": "1_000",
    }


def test_text_stays_as_it_is_written(parse, tmp_path):
    Path("recipe.yaml").write_text(recipe() + "run_name: 010\nmodel_revision: 1e5\nsave_strategy: no\n")
    found = parse_recipe(["--config", "recipe.yaml"])
    assert (found.config.run_name, found.model.model_revision, found.config.save_strategy) == ("010", "1e5", "no")


def test_what_is_written_is_read_again_by_both_versions_of_yaml():
    texts = ["no", "010", "1e5", "1:30", "~", "null", "", ".inf", "0o7", "yes", "- x", "x\ny", "1_000", "<<", "=", "*x"]
    content = {"texts": texts, "numbers": [5e-5, 1e22, -0.0, 7, True, None], "shared": [texts, texts]}
    for read in (yaml.safe_load, lambda text: parse_yaml(text, "x").values):
        assert read(dump_yaml(content)) == content


def test_all_faults_come_at_once_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("lora_r: 0\nbtea: 1\n\nmax_steps: few\nseed: -1\n")
    with pytest.raises(USER_ERRORS) as caught:
        parse_recipe(["--config", "recipe.yaml"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 mistakes in recipe.yaml:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["line 1", "line 2", "line 4", "line 5"]


def test_values_of_every_kind_for_every_setting(parse):
    """A pseudo-random walk through settings times values; no setting twice before each was tried."""
    chance = random.Random(6)
    cases = [(name, value) for name in FIELDS if name not in LEFT_OUT for value in VALUES]
    chance.shuffle(cases)
    ends, counts = time.monotonic() + SECONDS, Counter[str]()
    for name, value in cases:
        if time.monotonic() > ends:
            break
        counts[parse(recipe(**{name: value}))] += 1
    print(f"settings: {dict(counts)} of {len(cases)} cases, none raw")
    assert counts["refused"] > counts["taken"]


PIECES = [": ", "\n", "- ", "{", "}", "[", "]", "&a ", "*a", "!!int ", "!x ", "<<: ", "? ", "| ", "> ", "#", "'", '"']
PIECES += [
    "\t",
    "\0",
    "\ud800",
    "\ufeff",
    "\u2028",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "0x",
    "1e",
    "~",
    "null",
    "9" * 400,
]


def test_yaml_with_bytes_changed(parse):
    chance = random.Random(66)
    ends, counts = time.monotonic() + SECONDS / 3, Counter[str]()
    good = recipe(loss_kwargs={"dpo": {"beta": 0.1}}, loss_type=["dpo"], max_steps=3)
    while time.monotonic() < ends:
        text = good
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(["", *PIECES]) + text[at + chance.choice([0, 0, 1, 5]) :]
        try:
            parse_yaml(text, "recipe.yaml")
        except YamlError:
            counts["no YAML"] += 1
            continue
        counts[parse(text)] += 1
    print(f"YAML with bytes changed: {dict(counts)}, none raw")
    assert counts["no YAML"]
