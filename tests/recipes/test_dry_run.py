"""`--dry_run`: says what a run would do, against counts by hand, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.helpers import ranked_rows
from trl_dpo_ext.cli import main
from trl_dpo_ext.run import training_run

ROWS = ranked_rows(12, scores=True)


@pytest.fixture
def recipe(write_recipe, ranked_data):
    """Write a recipe; changes override, None removes. Return the command that dry-runs it."""

    def write(**changes: Any) -> list[str]:
        own = {
            "dataset_name": str(ranked_data(6)),
            "loss_type": ["dpo", "sft"],
            "loss_weights": [1.0, 0.25],
            "beta": 0.2,
            "max_steps": None,
            "num_train_epochs": 5,
            "gradient_accumulation_steps": 3,
            "logging_steps": None,
            "save_strategy": None,
        }
        return ["train", *write_recipe(**{**own, **changes}), "--dry_run"]

    return write


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args: Any) -> None:
        raise AssertionError("the run went on to train")

    monkeypatch.setattr(training_run, "_train_and_save", fail)


@pytest.mark.usefixtures("no_training")
def test_what_a_run_would_do_is_said_and_nothing_is_written(recipe, tiny_model_dir, tmp_path, capsys):
    options = {
        "precompute_ref_log_probs": True,
        "ref_cache_dir": str(tmp_path / "cache"),
        "push_to_hub": True,
        "hub_model_id": "me/mine",
        "hub_private_repo": True,
        "hub_base_model": "a/base",
        "reward": "vader",
        "save_strategy": "epoch",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": False,
    }
    assert main(recipe(**options)) == 0
    said = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    total = sum(tokens(row["prompt"]) + sum(tokens(text) + 1 for text in row["completions"]) for row in ROWS)
    for words in (
        f"train: 12 prompts with {sum(len(row['completions']) for row in ROWS)} responses.",
        "test: 6 prompts with",
        ROWS[0]["prompt"],
        f"\u25b6{ROWS[0]['completions'][0]}<|im_end|>\u25c0",
        "dpo, weight 1: beta 0.2.",
        "sft, weight 0.25: no hyperparameters.",
        "the model without the trained adapter.",
        "Its log-probs would be computed before the first step and stored",
        "Each prompt is computed once",
        "GiB on a GPU, estimated",
        "10 steps of 6 prompts.",  # 12 prompts are 2 steps an epoch
        f"{total:,} tokens in an epoch",
        "vader reward of samples of 64 prompts",
        "eval_strategy: steps",
        f"{tmp_path / 'out'}: the adapter, its record.",
        "Pushed to me/mine (private), hub_strategy: every_save.",
        "No access token was found",
        "nothing was written or pushed",
    ):
        assert words in said, words
    assert re.search(r"\d s for the second step on cpu: about [\d.]+ (s|min|h) in all", said)
    assert "train_runtime" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


@pytest.mark.usefixtures("no_training")
def test_full_fine_tuning_without_a_reference(recipe, capsys):
    assert main(recipe(use_peft=None, lora_target_modules=None, loss_type="simpo", loss_weights=None, beta=2.0)) == 0
    said = capsys.readouterr().out
    for words in (
        "none: no loss reads it.",
        "simpo, weight 1: beta 2.0",
        ": the model, its record.",
        "none (eval_strategy: no, and no reward).",
        "Nothing is pushed to the Hub",
    ):
        assert words in said, words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta": -1}, "beta"),
        ({"dataset_name": "/nowhere"}, "/nowhere"),
        ({"lora_target_modules": ["nope"]}, "nope"),
        ({"max_length": 2}, "max_length"),
    ],
)
def test_what_would_stop_the_run_stops_the_dry_run(changes, said, recipe, tmp_path, capsys):
    assert main(recipe(**changes)) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Dry run" not in shown.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            # A reference whose log-probs are stored isn't in memory, so the frontier has nothing to compare with.
            {
                "use_peft": None,
                "lora_target_modules": None,
                "precompute_ref_log_probs": True,
                "reward": "vader",
                "frontier_steps": 1,
            },
            "frontier_steps=1 measures the KL to the reference",
        ),
        ({"dataloader_drop_last": True, "invalid_rows": "drop"}, "leaves no batch to train on"),
        ({"reward": "vader"}, "the prompt is ''"),
    ],
)
def test_what_would_stop_the_run_after_its_model_is_loaded_stops_it_too(changes, said, recipe, tmp_path, capsys):
    if "frontier_steps" not in changes:
        changes = {**changes, "dataset_name": str(_faulty(tmp_path / "faulty", changes))}
    command = recipe(**changes)
    for arguments in (command, command[:-1]):  # the dry run, and the run
        assert main(arguments) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert "Dry run" not in shown.out


def _faulty(folder: Path, changes: dict[str, Any]) -> Path:
    """Write data with one whole training row among empty ones, or empty prompts in the test split."""
    folder.mkdir()
    train, test = ranked_rows(12, scores=True), ranked_rows(3, scores=True)
    if changes.get("invalid_rows"):
        train = [train[0], *({**row, "completions": [""] * len(row["completions"])} for row in train[1:])]
    else:
        test = [{**row, "prompt": ""} for row in test]
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
