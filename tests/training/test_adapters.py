"""The trainer checks the quantization and the adapter's target layers before it reads weights."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl.trainer import dpo_trainer

from tests import helpers
from tests.training import support
from trl_dpo_ext.training import ConfigError
from trl_dpo_ext.training.preflight import adapter_checks as adapters

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def no_loading(monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", fail)


def refused(model: Any, folder: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        support.trainer(model, folder, helpers.ranked_dataset(2), **settings)
    return str(caught.value)


def test_4bit_without_an_adapter(no_loading, tiny_model_dir, tmp_path):
    message = refused(tiny_model_dir, tmp_path, quantization_config=NF4)
    for part in ("quantized", "use_peft: true", "load_in_4bit"):
        assert part in message


@pytest.mark.parametrize(
    ("stored", "asked", "fits"),
    [
        ({"quant_method": "gptq", "bits": 4}, NF4, False),
        ({"quant_method": "fp8"}, NF4, False),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, NF4, False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, BitsAndBytesConfig(load_in_8bit=True), False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, NF4, True),
    ],
)
def test_a_model_that_is_stored_quantized(stored, asked, fits, no_loading, tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    settings = {"quantization_config": asked, "peft_config": support.lora()}
    if fits:
        with pytest.raises(AssertionError, match="the model was loaded"):
            support.trainer(str(folder), tmp_path, helpers.ranked_dataset(2), **settings)
        return
    message = refused(str(folder), tmp_path, **settings)
    bits = 4 if asked.load_in_4bit else 8
    for part in (f"in {bits} bit", repr(str(folder)), repr(stored["quant_method"]), f"load_in_{bits}bit"):
        assert part in message


def test_the_layers_are_looked_up_without_zero3_s_initialisation(no_loading, tiny_model_dir, tmp_path, monkeypatch):
    """Under ZeRO-3, `from_config` initializes and shards weights, and fails on the meta device."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr("transformers.PreTrainedModel._from_config", refused)
    with pytest.raises(ConfigError, match="nowhere"):
        support.trainer(
            tiny_model_dir, tmp_path, helpers.pair_dataset(2), peft_config=support.lora(target_modules=["nowhere"])
        )


def test_targets_that_match_nothing(no_loading, tiny_model_dir, tmp_path):
    for targets in (["q_porj"], ["proj"], ["c_attn", "c_proj"], r".*\.attention\.query"):
        message = refused(tiny_model_dir, tmp_path, peft_config=support.lora(target_modules=targets))
        for part in ("match nothing", "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj", "'all-linear'"):
            assert part in message
        for target in [targets] if isinstance(targets, str) else targets:
            assert repr(target) in message
    assert "Did you mean 'q_proj'" in refused(
        tiny_model_dir, tmp_path, peft_config=support.lora(target_modules=["q_porj"])
    )


def test_targets_that_match_nothing_in_a_model_in_memory(tmp_path):
    model = helpers.tiny_model(helpers.tiny_tokenizer())
    assert "up_proj" in refused(model, tmp_path, peft_config=support.lora(target_modules=["fc_in"]))


def test_gpt2_has_layers_of_its_own_kind(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=64)).save_pretrained(tmp_path)
    args = support.config(tmp_path)
    with pytest.raises(ConfigError, match="c_attn, c_fc, c_proj, lm_head"):
        adapters.check_target_modules(str(tmp_path), support.lora(), args)
    adapters.check_target_modules(str(tmp_path), support.lora(target_modules=["c_attn"]), args)


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj"], ["layers.0.mlp.up_proj"], r".*\.self_attn\.[qv]_proj", ["embed_tokens"], None]
)
def test_targets_that_match(targets, tiny_model_dir, tmp_path, caplog):
    config = LoraConfig(target_modules=targets)
    adapters.check_target_modules(tiny_model_dir, config, support.config(tmp_path))
    adapters.check_target_modules(tiny_model_dir, None, support.config(tmp_path))
    assert not caplog.text


def test_a_single_target_that_matches_nothing_is_logged(tiny_model_dir, tmp_path, caplog):
    config = LoraConfig(target_modules=["q_proj", "query_key_value"])
    adapters.check_target_modules(tiny_model_dir, config, support.config(tmp_path))
    assert "'query_key_value' match nothing in this model and get no adapter" in caplog.text


# Experts


def moe(kind: str) -> Any:
    size: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
    }
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**size, num_local_experts=4))
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**size, num_experts=4, moe_intermediate_size=16, head_dim=16))


@pytest.mark.parametrize("beside", [[], ["q_proj"]])
@pytest.mark.parametrize(
    ("kind", "names"), [("mixtral", ["w1", "w2", "w3"]), ("qwen3_moe", ["gate_proj", "up_proj", "down_proj"])]
)
def test_experts_by_the_names_of_their_former_layers(kind, names, beside, tmp_path, caplog):
    """transformers 5 keeps experts in fused parameters, and PEFT adapts those by the old names."""
    trainer = support.trainer(
        moe(kind),
        tmp_path,
        helpers.ranked_dataset(4),
        processing_class=helpers.tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=[*names, *beside]),
        max_steps=1,
    )
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert any("experts" in name for name in trained)
    assert any("q_proj" in name for name in trained) == bool(beside)
    assert "match nothing" not in caplog.text


def test_a_part_of_what_is_fused_is_refused(tmp_path):
    message = refused(
        moe("mixtral"),
        tmp_path,
        processing_class=helpers.tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["w1", "w2"]),
    )
    assert "w3" in message


@pytest.mark.parametrize(
    ("setting", "option", "name", "near"),
    [
        ("lora_modules_to_save", "modules_to_save", "embed_token", "embed_tokens"),
        ("lora_target_parameters", "target_parameters", "experts.gate_up_prj", "gate_up_proj"),
    ],
)
def test_names_that_peft_would_leave_out_without_a_word(setting, option, name, near, tmp_path):
    message = refused(
        moe("mixtral"),
        tmp_path,
        processing_class=helpers.tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], **{option: [name]}),
    )
    assert all(part in message for part in (setting, name, near)), message


def test_adalora_is_refused(no_loading, tiny_model_dir, tmp_path):
    """Nobody would call update_and_allocate, so its ranks would stay where they start."""
    config = AdaLoraConfig(target_modules=["q_proj"], total_step=10, tinit=1, tfinal=2)
    assert "update_and_allocate" in refused(tiny_model_dir, tmp_path, peft_config=config)
