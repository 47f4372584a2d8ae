"""Shared by the hub's tests: adapters that change the model visibly, and folders as a run leaves them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests import helpers

PROMPTS = [f"{' '.join(helpers.WORDS[i : i + 3 + i % 5])} {i}" for i in range(8)]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def randomize(model: Any, scale: float = 0.1, seed: int = 1) -> None:
    """Give every trainable weight a noise that is not small: what training would have changed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = scale * torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(parameter * (1 + noise) if "magnitude" in name else parameter + noise)


def save_adapter(folder: Path, base: str, *, quantized: bool = True, **lora: Any) -> Path:
    """Save an adapter on `base`, its tokenizer and its recipe, as recipes/train.py does."""
    options = {"quantization_config": BitsAndBytesConfig(**NF4)} if quantized else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    model = get_peft_model(model, config)
    randomize(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    recipe = {"model_name_or_path": base, "use_peft": True, "loss_type": ["plackett_luce"], "load_in_4bit": quantized}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy(source: Path, target: Path) -> Path:
    """Copy a folder."""
    return Path(shutil.copytree(source, target))


def sha256(path: Path) -> str:
    """Return the name of a file's content in LFS."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def add_record(folder: Path) -> None:
    """Add what recipes/train.py leaves beside the adapter."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe |= {"dataset_name": "recipes/quickstart/data", "reward": "vader"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    interval = {"mean": 0.25, "low": 0.1, "high": 0.4, "level": 0.95}
    side = {
        "reward": interval,
        "kl": {"mean": 3.5, "standard_error": 0.25},
        "prompts": 2,
        "max_new_tokens": 4,
        "temperature": 1.0,
        "seed": 0,
        "samples": [{"prompt": p, "completion": "a | b", "reward": 0.5} for p in ("the film", "a story")],
    }
    result = {
        "format": 1,
        "evaluation": {"before": {**side, "kl": None}, "after": side, "difference": interval},
        "recipe": recipe,
        "metrics": {"train_loss": 0.5, "step": 3},
        "seconds": 61.2,
        "versions": {"trl": "1.16.0"},
        "hardware": {"processor": "a processor", "gpus": []},
        "peak_memory_gib": {"process": 1.5, "gpu": 0.0},
        "data": {"train_rows": 12, "eval_rows": None, "lint": {"duplicate-row in train": 2}},
        "launch": f"accelerate launch recipes/train.py --model_name_or_path {recipe['model_name_or_path']}",
        "base": {"dtype": "float32", "quantization": NF4},
    }
    (folder / "result.json").write_text(json.dumps(result))
    said = f"the base model {recipe['model_name_or_path']!r} with adapters off, as it was when training started"
    identity = {"kind": "adapters_off", "description": said, "fingerprint": "ab" * 16}
    (folder / "reference.json").write_text(json.dumps(identity))
    (folder / "curves.png").write_bytes(b"\x89PNG" + bytes(range(256)) * 40)
