"""The runs that every sharded engine must give like one process: two steps of four prompts, in float32."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from tests import helpers
from tests.training import support

PROMPTS = 4
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])

CASES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": ["dpo"]},
    "lora": {"loss_type": ["dpo"], "peft_config": LORA},
    "lora_simpo": {"loss_type": ["simpo"], "peft_config": LORA},
    "ragged": {"loss_type": ["plackett_luce"], **support.LAYOUTS["shared_packed"]},
    "running_means": {"loss_type": ["bco", "beta_dpo"], **support.LAYOUTS["shared_packed"]},
    "whole_step": {"loss_type": ["aot", "sft"], "gradient_accumulation_steps": 2},
    "checkpointing": {"loss_type": ["dpo"], "gradient_checkpointing": True},
}


def trainer(case: str, model: str, folder: str, processes: int, **changes: Any) -> Any:
    """Return a case's trainer; each process takes its part of the step."""
    settings = dict(CASES[case])
    accumulation = settings.pop("gradient_accumulation_steps", 1)
    return support.trainer(
        model,
        folder,
        helpers.ranked_dataset(2 * PROMPTS, ties=True),
        max_steps=2,
        per_device_train_batch_size=PROMPTS // processes // (accumulation if processes > 1 else 1),
        gradient_accumulation_steps=accumulation if processes > 1 else 1,
        optim="adamw_torch",
        learning_rate=1e-3,
        **{**settings, **changes},
    )
