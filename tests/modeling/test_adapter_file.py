"""An adapter is loaded whole or not at all, and its file is checked before it is sent anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.hub import support
from trl_dpo_ext.cli import main
from trl_dpo_ext.hub import RunError, read_run
from trl_dpo_ext.hub.adapter_loading import attach_adapter, load_adapter
from trl_dpo_ext.hub.merge import merge_adapter
from trl_dpo_ext.modeling.adapter_file import check_adapter_file
from trl_dpo_ext.modeling.complete_model import load_causal_lm
from trl_dpo_ext.modeling.weight_files import weight_files

PROMPTS = support.PROMPTS[:2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from tests import helpers

    return helpers.save_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def sound(base, tmp_path_factory):
    return support.save_adapter(tmp_path_factory.mktemp("sound") / "adapter", base, quantized=False)


def tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def first(values: dict[str, Any]) -> str:
    return sorted(name for name in values if "lora_B" in name)[0]


def renamed(folder: Path) -> None:
    tensors(folder, lambda values: {f"x.{name}": value for name, value in values.items()})


def renamed_modules(folder: Path) -> None:
    tensors(folder, lambda values: {name.replace("_proj", "_projection"): value for name, value in values.items()})


def eight_missing(folder: Path) -> None:
    tensors(folder, lambda values: dict(sorted(values.items())[8:]))


def one_missing(folder: Path) -> None:
    tensors(folder, lambda values: {name: value for name, value in values.items() if name != first(values)})


def targets_cut(folder: Path) -> None:
    support.edit_json(folder / "adapter_config.json", target_modules=["q_proj"])


def rank_changed(folder: Path) -> None:
    support.edit_json(folder / "adapter_config.json", r=2)


def transposed(folder: Path) -> None:
    tensors(folder, lambda values: {**values, first(values): values[first(values)].T.contiguous()})


def one_column(folder: Path) -> None:
    tensors(folder, lambda values: {**values, first(values): values[first(values)][:, :1].contiguous()})


def not_a_number(folder: Path) -> None:
    tensors(folder, lambda values: {**values, first(values): torch.full_like(values[first(values)], torch.nan)})


def zeroed(folder: Path) -> None:
    tensors(folder, lambda values: {name: torch.zeros_like(value) for name, value in values.items()})


def emptied(folder: Path) -> None:
    tensors(folder, lambda values: {})


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def zero_bytes(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))


def pointer(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 12345\n"
    )


def missing(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def a_folder(folder: Path) -> None:
    missing(folder)
    (folder / "adapter_model.safetensors").mkdir()


def another_kind(folder: Path) -> None:
    support.edit_json(folder / "adapter_config.json", peft_type="NOT_YET_KNOWN")


def a_value_read_late(folder: Path) -> None:
    support.edit_json(folder / "adapter_config.json", alora_invocation_tokens=3)  # a list is expected


CASES = {
    "all renamed": (renamed, "28 tensors of the adapter are not in it"),
    "modules renamed": (renamed_modules, "28 of its tensors have no place in the model"),
    "eight missing": (eight_missing, "8 tensors of the adapter are not in it"),
    "one missing": (one_missing, "1 tensors of the adapter are not in it"),
    "target_modules cut": (targets_cut, "24 of its tensors have no place in the model"),
    "another rank": (rank_changed, "PEFT can't load the adapter"),
    "transposed": (transposed, "PEFT can't load the adapter"),
    "one column": (one_column, "PEFT can't load the adapter"),
    "NaN": (not_a_number, "holds NaN or infinity"),
    "zeros": (zeroed, "holds nothing but zeros"),
    "no tensors": (emptied, "holds no weights"),
    "truncated": (truncated, "is damaged or truncated"),
    "zero bytes": (zero_bytes, "is damaged or truncated"),
    "LFS pointer": (pointer, "is a Git LFS pointer"),
    "no file": (missing, "is missing"),
    "a folder": (a_folder, "is damaged or truncated"),
    "unknown kind": (another_kind, "PEFT can't load the adapter"),
    "a value read late": (a_value_read_late, "PEFT can't load the adapter"),
}
# What can't be seen without the base model.
NEEDS_BASE = ("eight missing", "another rank", "transposed", "one column", "unknown kind", "a value read late")


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_does_not_fit_is_refused_everywhere(case, base, sound, tmp_path, capsys):
    damage, says = CASES[case]
    folder = support.copy(sound, tmp_path / "adapter")
    damage(folder)
    with pytest.raises(RunError, match=says):
        load_adapter(folder, device="cpu")
    if case != "unknown kind":  # merge refuses that one by itself
        with pytest.raises(RunError, match=says):
            merge_adapter(folder, tmp_path / "merged", prompts=PROMPTS, device="cpu", progress=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "chosen": "a", "rejected": "b"}) + "\n" for p in PROMPTS))
    arguments = ["--data", str(rows), "--split", "train", "--max-new-tokens", "2"]
    assert main(["eval", "sample", str(folder), str(tmp_path / "samples.jsonl"), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    if case not in NEEDS_BASE:
        with pytest.raises(RunError, match=r"adapter_model\.safetensors"):
            check_adapter_file(folder, read_run(folder).adapter, RunError)


def test_an_adapter_as_before_training_is_not_sent_and_is_warned_of(base, sound, tmp_path, caplog):
    folder = support.copy(sound, tmp_path / "adapter")
    tensors(folder, lambda values: {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in values.items()})
    with pytest.raises(RunError, match="changes nothing"):
        check_adapter_file(folder, read_run(folder).adapter, RunError)
    load_adapter(folder, device="cpu")
    assert "changes nothing" in caplog.text


# Adapters that are sound


LORA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
SOUND: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "all linear": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    "a pattern": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=r".*\.[qv]_proj"),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True),
    "biases": lambda: peft.LoraConfig(**LORA, bias="all"),
    "lora's own bias": lambda: peft.LoraConfig(**LORA, lora_bias=True),
    "embeddings": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens", "lm_head"]),
    "modules to save": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[1, 2]),
    "parameters": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=[], target_parameters=["q_proj.weight"]
    ),
    "replicated layers": lambda: peft.LoraConfig(**LORA, layer_replication=[[0, 2], [1, 2]]),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(**LORA),
    "lokr": lambda: peft.LoKrConfig(**LORA),
    "oft": lambda: peft.OFTConfig(**LORA, oft_block_size=4, r=0),
    "vera": lambda: peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "hra": lambda: peft.HRAConfig(**LORA),
    "layer norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_adapter_of_any_kind_is_taken(kind, base, tmp_path):
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), SOUND[kind]())
    support.randomize(model)
    model.save_pretrained(tmp_path)
    check_adapter_file(tmp_path, json.loads((tmp_path / "adapter_config.json").read_text()), RunError)
    loaded = attach_adapter(AutoModelForCausalLM.from_pretrained(base), read_run(tmp_path), trainable=False)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=1e-5)


def test_new_tokens_are_taken(base, tmp_path):
    """PEFT then saves the embeddings too, which are no tensors of the adapter."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    model = peft.get_peft_model(model, SOUND["lora"]())
    support.randomize(model)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(model.config.vocab_size)
    attach_adapter(plain, read_run(tmp_path), trainable=False)


# Whole models


def test_a_model_without_all_its_weights_is_refused(base, tmp_path):
    folder = support.copy(Path(base), tmp_path / "model")
    assert load_causal_lm(str(folder), ValueError) is not None
    values = load_file(folder / "model.safetensors")
    save_file({f"x.{n}": v for n, v in values.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: its files have no weights for .* which would be random"):
        load_causal_lm(str(folder), ValueError)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused(value, base, tmp_path):
    folder = support.copy(Path(base), tmp_path / "model")
    values = load_file(folder / "model.safetensors")
    values["model.norm.weight"][3] = value
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds NaN or infinity"):
        load_causal_lm(str(folder), ValueError)


def test_a_model_in_several_files(base, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path, max_shard_size="10KB")
    paths = weight_files(tmp_path, RunError)
    assert sorted(tmp_path.glob("*.safetensors")) == paths
    assert len(paths) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensor = next(name for name, place in index["weight_map"].items() if place == paths[0].name)
    for places, says in (
        ({tensor: paths[1].name}, f"lacks {tensor}"),
        ({tensor: "../elsewhere.safetensors"}, "is not the name of a file in the same folder"),
        ({tensor: 3}, f"weight_map.{tensor}: 3 is not a valid string"),
        ({tensor: "none.safetensors"}, "is missing"),
    ):
        changed = {**index, "weight_map": {**index["weight_map"], **places}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match=says):
            weight_files(tmp_path, RunError)
