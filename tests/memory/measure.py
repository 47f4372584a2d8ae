"""Measures the peak of a real run on the CPU, as torch's profiler reports it, and estimates the same run."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import BitsAndBytesConfig

from tests import helpers
from trl_dpo_ext.memory.step import Setup, Shape, run_step
from trl_dpo_ext.training import PreferenceConfig, PreferenceTrainer

_COMMON: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
_GATED = {**_COMMON, "intermediate_size": 256, "num_key_value_heads": 2}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FAMILIES: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**_GATED),
    "qwen3": lambda: hf.Qwen3Config(**_GATED, head_dim=32),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_COMMON, intermediate_size=512),
    "gptj": lambda: hf.GPTJConfig(**_COMMON, rotary_dim=16, **_NO_DROPOUT),
    "gpt2": lambda: hf.GPT2Config(**{**_COMMON, "tie_word_embeddings": True}, **_NO_DROPOUT),
}
LORA: dict[str, Any] = {"r": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


def family_setup(
    family: str, folder: Path, *, method: str = "lora", shape: Shape | None = None, config: Any = None, **changes: Any
) -> Setup:
    """A run of a tiny model on the CPU; `method` is "full", "lora" or "qlora"."""
    shape = shape or Shape(2, 2, 96, 64)
    args = helpers.training_args(
        folder, max_length=None, per_device_train_batch_size=shape.prompts, **{"loss_type": "sigmoid", **changes}
    )
    return Setup(
        config=config or FAMILIES[family](),
        args=PreferenceConfig(**args),
        shape=shape,
        quantization=NF4 if method == "qlora" else None,
        peft=None if method == "full" else LoraConfig(**LORA),
        device="cpu",
    )


def estimated_peak(setup: Setup, layers: int | None = None) -> int:
    """Bytes of the largest phase."""
    return max(parts.total() for parts in run_step(setup, layers).values())


def measured_peak(setup: Setup, folder: Path) -> int:
    """Train for real; return what the weights take, plus the most that torch's allocator held besides."""
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(setup.config, dtype=setup.dtype)
    given: dict[str, Any] = {}
    if setup.quantization is not None:
        model.save_pretrained(folder / "model")
        model, given["quantization_config"] = str(folder / "model"), setup.quantization
    elif setup.peft is None:
        given["ref_model"] = None
    rows = setup.shape.rows()
    steps = int(setup.args.max_steps)
    trainer = PreferenceTrainer(
        model=model,
        args=setup.args,
        train_dataset=Dataset.from_list(rows * steps * setup.args.gradient_accumulation_steps),
        processing_class=helpers.tiny_tokenizer(),
        peft_config=copy.deepcopy(setup.peft),
        **given,
    )
    models = [m for m in (trainer.model, trainer.ref_model) if m is not None]
    weights = sum(_bytes(m) for m in models)
    gc.collect()  # what an earlier run left behind must not be freed while this one is counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    now = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return weights + most


def _bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code, *([state.state2.absmax, state.state2.code] if state.nested else [])]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
