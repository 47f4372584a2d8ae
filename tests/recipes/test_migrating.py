"""Configs of other trainers, with the keys that public ones have, become recipes that the strict parser takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from trl import ModelConfig

from trl_dpo_ext import cli
from trl_dpo_ext.parsing import StrictParser
from trl_dpo_ext.run import RecipeArguments
from trl_dpo_ext.run.migrating import Migration, MigrationError, migrate
from trl_dpo_ext.training import PreferenceConfig

AXOLOTL = {
    "base_model": "meta-llama/Meta-Llama-3-8B-Instruct",
    "model_type": "LlamaForCausalLM",
    "load_in_4bit": True,
    "rl": "dpo",
    "rl_beta": 0.05,
    "datasets": [{"path": "me/pairs", "split": "train", "type": "chat_template.default", "field_messages": "talk"}],
    "dataset_prepared_path": None,
    "val_set_size": 0.05,
    "output_dir": "out",
    "sequence_len": 4096,
    "adapter": "qlora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "micro_batch_size": 2,
    "num_epochs": 4,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "constant",
    "learning_rate": 0.0002,
    "bf16": "auto",
    "gradient_checkpointing": True,
    "warmup_ratio": 0.1,
    "evals_per_epoch": 4,
    "saves_per_epoch": 1,
    "wandb_project": "mine",
    "flash_attention": True,
}
LLAMA_FACTORY = {
    "model_name_or_path": "Qwen/Qwen3-4B",
    "stage": "dpo",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 16,
    "lora_target": "q_proj, v_proj",
    "pref_beta": 0.2,
    "pref_loss": "simpo",
    "simpo_gamma": 0.4,
    "dataset": "mine",
    "template": "qwen3",
    "preprocessing_num_workers": 4,
    "output_dir": "out",
    "plot_loss": True,
    "warmup_ratio": 0.1,
    "quantization_bit": 4,
    "flash_attn": "fa2",
}
HANDBOOK = {
    "model_name_or_path": "mine/sft",
    "torch_dtype": "bfloat16",
    "use_flash_attention_2": True,
    "use_peft": True,
    "lora_r": 128,
    "dataset_mixer": {"HuggingFaceH4/ultrafeedback_binarized": 1.0},
    "dataset_splits": ["train_prefs", "test_prefs"],
    "beta": 0.01,
    "do_eval": True,
    "evaluation_strategy": "steps",
    "eval_steps": 100,
    "max_length": 1024,
    "max_prompt_length": 512,
    "output_dir": "out",
    "warmup_ratio": 0.1,
    "rpo_alpha": 0.5,
    "hub_model_id": "mine/dpo",
}


def migrated(tmp_path, content: dict[str, Any], name: str = "config.yaml", source: str | None = None) -> Migration:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return migrate(path, source)


def parsed(migration: Migration) -> tuple[Any, Any, Any]:
    """The recipe as a run would parse it, on a machine without a GPU."""
    parser = StrictParser((RecipeArguments, PreferenceConfig, ModelConfig))
    recipe = yaml.safe_load(migration.as_yaml())
    parser.set_defaults_with_config(**{**recipe, "bf16": False, "tf32": None, "use_cpu": True})
    return parser.parse_args_into_dataclasses(args=[])


def test_axolotl(tmp_path):
    migration = migrated(tmp_path, AXOLOTL)
    assert migration.recipe == {
        "loss_type": "sigmoid",
        "beta": 0.05,
        "dataset_name": "me/pairs",
        "dataset_train_split": "train",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
        "max_length": 4096,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 4,
        "optim": "adamw_bnb_8bit",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0.1,
        "save_strategy": "epoch",
        "eval_strategy": "steps",
        "eval_steps": 0.0625,
        "bf16": True,
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
        "report_to": ["wandb"],
        "weight_decay": 0.0,
        "load_in_4bit": True,
        "output_dir": "out",
        "learning_rate": 0.0002,
    }
    notes = "\n".join(migration.notes)
    for part in ("columns: {talk: prompt}", "val_set_size: 0.05", "WANDB_PROJECT=mine", "weight_decay wasn't set"):
        assert part in notes
    assert parsed(migration)[1].beta == 0.05


def test_llama_factory(tmp_path):
    migration = migrated(tmp_path, LLAMA_FACTORY)
    assert migration.recipe == {
        "loss_type": "simpo",
        "beta": 0.2,
        "loss_kwargs": {"simpo": {"gamma_beta_ratio": 2.0}},
        "dataset_name": "mine",
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "load_in_4bit": True,
        "dataset_num_proc": 4,
        "warmup_steps": 0.1,
        "attn_implementation": "flash_attention_2",
        "max_length": 2048,
        "learning_rate": 5e-05,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "linear",
        "bf16": False,
        "model_name_or_path": "Qwen/Qwen3-4B",
        "output_dir": "out",
    }
    notes = "\n".join(migration.notes)
    for part in ("dataset_info.json", "template: qwen3", "learning_rate wasn't set"):
        assert part in notes
    assert parsed(migration)[1].objective().terms[0].hyperparameters == {"beta": 0.2, "gamma_beta_ratio": 2.0}


def test_llama_factory_finds_its_dataset(tmp_path):
    info = {"mine": {"hf_hub_url": "me/pairs", "ranking": True, "columns": {"prompt": "question", "chosen": "chosen"}}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    migration = migrated(tmp_path, LLAMA_FACTORY)
    assert migration.recipe["dataset_name"] == "me/pairs"
    assert any("columns: {question: prompt}" in note for note in migration.notes)


def test_the_alignment_handbook(tmp_path):
    migration = migrated(tmp_path, HANDBOOK)
    assert migration.recipe == {
        "dtype": "bfloat16",
        "eval_strategy": "steps",
        "dataset_name": "HuggingFaceH4/ultrafeedback_binarized",
        "dataset_train_split": "train_prefs",
        "dataset_test_split": "test_prefs",
        "dataset_converter": "ultrafeedback_binarized",
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.5],
        "beta": 0.01,
        "warmup_steps": 0.1,
        "attn_implementation": "flash_attention_2",
        "model_name_or_path": "mine/sft",
        "use_peft": True,
        "lora_r": 128,
        "eval_steps": 100,
        "max_length": 1024,
        "output_dir": "out",
        "hub_model_id": "mine/dpo",
    }
    assert migration.notes == ["max_prompt_length: 512 is left out. max_length limits prompt and response together."]
    parsed(migration)


def test_a_config_of_trl_1_is_a_recipe_already(tmp_path):
    config = {
        "model_name_or_path": "mine",
        "dataset_name": "me/pairs",
        "loss_type": ["sigmoid", "bco_pair", "sft"],
        "loss_weights": [0.8, 0.2, 1.0],
        "beta": 0.3,
        "per_device_train_batch_size": 2,
        "warmup_steps": 10,
        "output_dir": "out",
        "use_peft": True,
    }
    migration = migrated(tmp_path, config)
    assert (migration.recipe, migration.notes) == (config, [])
    parsed(migration)


LOSSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "trl, CPO": ("cpo.yaml", {"beta": 0.2, "per_device_train_batch_size": 1}, {"cpo": {"beta": 0.2, "alpha": 1.0}}),
    "trl, SimPO with CPO's default alpha": (
        "x.yaml",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
        {"cpo_simpo": {"beta": 2.0, "gamma": 1.0, "alpha": 1.0}},
    ),
    "trl, SimPO": (
        "x.yaml",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        {"simpo": {"beta": 2.0, "gamma_beta_ratio": 0.5}},
    ),
    "trl, ORPO": ("orpo/config_full.yaml", {"beta": 0.05}, {"orpo": {"lam": 0.05}}),
    "trl, reference-free": ("x.yaml", {"reference_free": True, "beta": 0.3}, {"reference_free_dpo": {"beta": 0.3}}),
    "axolotl, ORPO": ("x.yaml", {"rl": "orpo", "orpo_alpha": 0.2}, {"orpo": {"lam": 0.2}}),
    "axolotl, IPO": ("x.yaml", {"rl": "ipo", "rl_beta": 0.2}, {"ipo": {"tau": 0.2}}),
    "axolotl, SimPO": (
        "x.yaml",
        {"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.6},
        {"cpo_simpo": {"beta": 2.0, "gamma": 1.6, "alpha": 1.0}},
    ),
    "axolotl, SimPO alone": (
        "x.yaml",
        {"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.6, "cpo_alpha": 0.0},
        {"simpo": {"beta": 2.0, "gamma_beta_ratio": 0.8}},
    ),
    "llama-factory, ORPO": ("x.yaml", {"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.2}, {"orpo": {"lam": 0.2}}),
    "llama-factory, smoothed": (
        "x.yaml",
        {"stage": "dpo", "dpo_label_smoothing": 0.2},
        {"cdpo": {"beta": 0.1, "label_smoothing": 0.2}},
    ),
    "llama-factory, with SFT": (
        "x.yaml",
        {"stage": "dpo", "pref_loss": "hinge", "pref_ftx": 0.3},
        {"hinge": {"beta": 0.1}, "sft": {}},
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses(case, tmp_path):
    name, content, expected = LOSSES[case]
    migration = migrated(tmp_path, {**content, "dataset_name": "d", "output_dir": "o"}, name)
    objective = parsed(migration)[1].objective()
    assert {term.spec.name: dict(term.hyperparameters) for term in objective.terms} == expected


WRONG: dict[str, tuple[dict[str, Any] | str, str]] = {
    "SFT in axolotl": ({**AXOLOTL, "rl": None}, "trains no preference loss"),
    "GRPO in axolotl": ({**AXOLOTL, "rl": "grpo"}, "rl: grpo"),
    "another adapter": ({**AXOLOTL, "adapter": "llama-adapter"}, "llama-adapter"),
    "SFT in LLaMA-Factory": ({**LLAMA_FACTORY, "stage": "sft"}, "stage: sft"),
    "frozen layers": ({**LLAMA_FACTORY, "finetuning_type": "freeze"}, "finetuning_type: freeze"),
    "a loss that TRL removed": ({**HANDBOOK, "loss_type": "kto_pair"}, "kto_pair"),
    "keys of nobody": ({"a": 1}, "--from axolotl or"),
    "a list": ("- 1\n", "holds no settings"),
    "no YAML": ("a: [", "can't be read as YAML"),
    "empty": ("", "holds no settings"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_migrated(case, tmp_path):
    content, part = WRONG[case]
    path = tmp_path / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(MigrationError, match=part.replace("[", r"\[")):
        migrate(path)


def test_the_command_writes_a_recipe_and_keeps_files(tmp_path, capsys):
    source, target = tmp_path / "theirs.yaml", tmp_path / "mine.yaml"
    source.write_text(yaml.safe_dump(AXOLOTL))
    assert cli.main(["migrate", str(source)]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["migrate", str(source), "--output", str(target)]) == 0
    assert target.read_text() == printed
    assert "val_set_size" in capsys.readouterr().out
    assert cli.main(["migrate", str(source), "--output", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["migrate", str(source), "--from", "axolotle"]) == 2
    assert "Did you mean 'axolotl'" in capsys.readouterr().err


def test_a_missing_file_is_a_sentence(tmp_path, capsys):
    assert cli.main(["migrate", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml can't be read" in capsys.readouterr().err
