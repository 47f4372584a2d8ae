"""The runs that every sharded engine must give like one process: two steps of four prompts, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests import helpers
from tests.training import support

PROMPTS = 4
SHARED = support.LAYOUTS["shared_packed"]
MOVING = {"loss_type": ["dpo"], "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
# Floating-point storage, since FSDP and ZeRO-3 shard nothing else.
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.float32,
    bnb_4bit_quant_storage=torch.float32,
)

CASES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": ["dpo"]},
    "lora": {"loss_type": ["dpo"], "adapter": True},
    "lora_simpo": {"loss_type": ["simpo"], "adapter": True},
    "qlora": {"loss_type": ["dpo"], "adapter": True, "model": "wide", "quantization_config": NF4},
    "continued": {"loss_type": ["dpo"], "model": "continued", **SHARED},
    "in_memory": {"loss_type": ["dpo"], "model": "in_memory"},
    "tied": {"loss_type": ["dpo"], "model": "tied", **SHARED},
    "ragged": {"loss_type": ["plackett_luce"], **SHARED},
    "running_means": {"loss_type": ["bco", "beta_dpo"], **SHARED},
    "whole_step": {"loss_type": ["aot", "sft"], "gradient_accumulation_steps": 2},
    "passes": {"loss_type": ["plackett_luce"], "responses_per_pass": 2},
    "checkpointing": {"loss_type": ["dpo"], "gradient_checkpointing": True, **SHARED},
    "moving": MOVING,
    "moving_lora": {**MOVING, "adapter": True},
}
# A learning rate that is lost in rounding.
FAILING: dict[str, dict[str, Any]] = {"stuck": {"loss_type": ["dpo"], "learning_rate": 1e-30}}


def save_models(folder: Path) -> str:
    """Save the models of all cases."""
    helpers.save_tiny_model(folder / "plain")
    helpers.save_tiny_model(folder / "tied", tie_word_embeddings=True)
    # Rows that hold a quantization block of 64 weights.
    helpers.save_tiny_model(folder / "wide", hidden_size=64, intermediate_size=128)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
    get_peft_model(model, support.lora(init_lora_weights=False)).save_pretrained(folder / "adapter")
    return str(folder)


def compared(case: str, weight: Any) -> bool:
    """Whether a weight is to be compared: not those in 4 bits, which are no numbers, and stay as they are."""
    return weight.requires_grad or "quantization_config" not in CASES[case]


def _model(name: str, models: Path) -> Any:
    if name not in ("continued", "in_memory"):
        return str(models / name)
    model = AutoModelForCausalLM.from_pretrained(models / "plain", dtype=torch.float32)
    return PeftModel.from_pretrained(model, models / "adapter", is_trainable=True) if name == "continued" else model


def trainer(case: str, models: str, folder: str, processes: int, **changes: Any) -> Any:
    """Return a case's trainer; each process takes its part of the step."""
    settings = {**(CASES | FAILING)[case], **changes}
    accumulation = settings.pop("gradient_accumulation_steps", 1) if processes > 1 else 1
    settings.pop("gradient_accumulation_steps", None)
    if settings.pop("adapter", False):
        settings["peft_config"] = support.lora()
    batch = PROMPTS // processes // accumulation
    steps = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    name = settings.pop("model", "plain")
    own = {"max_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3, **steps, **settings}
    support.config(folder, **{k: v for k, v in changes.items() if k == "use_cpu"})  # an engine is set up by a config
    made = support.trainer(_model(name, Path(models)), folder, helpers.ranked_dataset(2 * PROMPTS, ties=True), **own)
    for weight in made.model.parameters():
        if weight.requires_grad:  # TRL has made adapters on a quantized model bfloat16, which hides small errors
            weight.data = weight.data.float()
    return made
