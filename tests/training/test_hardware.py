"""Settings that the hardware doesn't support are rejected before a model is loaded. GPUs and sharding are faked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl.trainer import dpo_trainer

from tests import helpers
from tests.training import support
from trl_dpo_ext.training import ConfigError, PreferenceConfig, sharding
from trl_dpo_ext.training.preflight import hardware


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are `count` GPUs of a kind."""

    def pretend(count: int, name: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: including_emulation or capability >= (8, 0),
        )

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return pretend


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        PreferenceConfig(**helpers.training_args("out", **settings))
    return str(caught.value)


def test_two_processes_on_one_gpu(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    message = refused(use_cpu=False)
    for part in ("2 processes", "1 GPU is visible", "--num_processes 1", "CUDA_VISIBLE_DEVICES"):
        assert part in message
    hardware.check_processes(use_cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    hardware.check_processes(use_cpu=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    gpus(2)
    hardware.check_processes(use_cpu=False)
    gpus(0)
    hardware.check_processes(use_cpu=False)


@pytest.mark.parametrize("given", ["path", "object"])
def test_flex_attention_on_a_cpu(given, tiny_model_dir, tmp_path):
    options = {"attn_implementation": "flex_attention"}
    model = tiny_model_dir if given == "path" else AutoModelForCausalLM.from_pretrained(tiny_model_dir, **options)
    settings = {"model_init_kwargs": options} if given == "path" else {}
    with pytest.raises(ConfigError, match=r"can't train on a CPU.*'sdpa', which gives the same numbers"):
        support.trainer(model, tmp_path, helpers.ranked_dataset(2), **settings)
    for attention, device in (("sdpa", "cpu"), ("flex_attention", "cuda")):
        args = SimpleNamespace(model_init_kwargs={"attn_implementation": attention}, device=torch.device(device))
        hardware.check_attention(tiny_model_dir, args)


def test_bfloat16_on_a_card_that_only_emulates_it(gpus):
    gpus(1, "Tesla T4", (7, 5))
    for bf16 in (True, None):  # TRL's default
        message = refused(use_cpu=False, bf16=bf16)
        for part in ("Tesla T4", "7.5", "8.0", "bf16: false", "fp16: true"):
            assert part in message
    hardware.check_bf16(bf16=False, fp16=False, use_cpu=False)
    hardware.check_bf16(bf16=None, fp16=True, use_cpu=False)
    gpus(1)
    hardware.check_bf16(bf16=True, fp16=False, use_cpu=False)


def test_bfloat16_without_a_gpu(gpus):
    gpus(0)
    message = refused(use_cpu=False, bf16=True)
    for part in ("no GPU", "bf16: false", "dtype: float32"):
        assert part in message
    hardware.check_bf16(bf16=True, fp16=False, use_cpu=True)


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_on_a_cpu_that_emulates_it_is_said(monkeypatch, caplog, supported):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    hardware.check_bf16(bf16=False, fp16=False, use_cpu=True)
    assert not caplog.records
    hardware.check_bf16(bf16=None, fp16=False, use_cpu=True)
    assert ("bf16: false" in caplog.text) is not supported


# Sharded weights


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
BF16 = {"model_init_kwargs": {"dtype": "bfloat16"}}
LORA = {"peft_config": support.lora()}


@pytest.fixture(params=["FSDP", "DeepSpeed ZeRO-3"])
def sharded(request, monkeypatch):
    """Pretend that weights are sharded over processes."""
    if request.param == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        made = support.config

        def config(*args: Any, **kwargs: Any) -> PreferenceConfig:
            config = made(*args, **kwargs)
            config.deepspeed_plugin = SimpleNamespace(zero_stage=3)
            return config

        monkeypatch.setattr(support, "config", config)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", fail)
    return request.param


def started(model: str, folder: Any, **settings: Any) -> str:
    """Return the error of a rejected run, or "the model was loaded"."""
    with pytest.raises((ConfigError, AssertionError)) as caught:
        support.trainer(model, folder, helpers.ranked_dataset(2), **settings)
    return str(caught.value)


def test_sharded_4bit_weights_need_the_models_dtype(sharded, tiny_model_dir, tmp_path):
    for storage, stated in ((torch.uint8, "'uint8'"), (torch.float32, "'float32'")):
        quantization = BitsAndBytesConfig(**NF4, bnb_4bit_quant_storage=storage)
        message = started(tiny_model_dir, tmp_path, quantization_config=quantization, **LORA, **BF16)
        for part in (f"bnb_4bit_quant_storage={stated}", sharded, "Set bnb_4bit_quant_storage: bfloat16"):
            assert part in message
    quantization = BitsAndBytesConfig(**NF4, bnb_4bit_quant_storage=torch.bfloat16)
    right = {"quantization_config": quantization, **LORA, **BF16}
    assert started(tiny_model_dir, tmp_path, **right) == "the model was loaded"


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "rmsprop_bnb"])
def test_fsdp_with_the_optimizers_of_bitsandbytes(optim, sharded, tiny_model_dir, tmp_path):
    message = started(tiny_model_dir, tmp_path, optim=optim)
    if sharded == "FSDP":
        assert optim in message
        assert "optim='adamw_torch'" in message
    else:
        assert message == "the model was loaded"


def test_fsdp_with_8bit_weights(sharded, tiny_model_dir, tmp_path):
    message = started(
        tiny_model_dir, tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), **LORA, **BF16
    )
    assert message.startswith("load_in_8bit stores integers" if sharded == "FSDP" else "the model was loaded")


def test_what_is_not_sharded(tmp_path, monkeypatch):
    args = support.config(tmp_path)
    assert sharding(args) is None
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    assert sharding(args) is None
    args.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    assert sharding(args) == "DeepSpeed ZeRO-3"
