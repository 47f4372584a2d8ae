"""Configs of LLaMA-Factory with `stage: dpo` or `kto`."""

from __future__ import annotations

import json
from typing import Any

from .migration import Migration, MigrationError

_RENAMED = {
    "cutoff_len": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "enable_liger_kernel": "use_liger_kernel",
    "streaming": "dataset_streaming",
    "double_quantization": "use_bnb_nested_quant",
    "quantization_type": "bnb_4bit_quant_type",
    "additional_target": "lora_modules_to_save",
}
_NO_COUNTERPART = {
    "template": "The tokenizer's own chat template is used; change it in the model's folder.",
    "default_system": "Put the system message into the rows.",
    "enable_thinking": "Put it into each row's chat_template_kwargs.",
    "max_samples": "Cut the dataset beforehand.",
    "val_size": "Split the data beforehand, and name the split in dataset_test_split.",
    "eval_dataset": "Name a split of the dataset in dataset_test_split.",
    "mix_strategy": "A recipe has one dataset.",
    "interleave_probs": "A recipe has one dataset.",
    "adapter_name_or_path": "Name the adapter's folder as model_name_or_path to go on from it.",
    "ref_model": "The reference is the model that training begins with.",
    "ref_model_adapters": "The reference is the model that training begins with.",
    "ref_model_quantization_bit": "The reference is the model that training begins with.",
    "rope_scaling": "Set it in the model's config.json.",
    "shift_attn": "There is no such attention.",
    "use_unsloth": "Unsloth replaces the trainer.",
    "use_galore": "Choose an optimizer in optim.",
    "use_apollo": "Choose an optimizer in optim.",
    "use_badam": "Choose an optimizer in optim.",
    "loraplus_lr_ratio": "Choose an optimizer in optim.",
    "train_on_prompt": "Only responses are scored.",
    "resize_vocab": "Resize the model beforehand.",
    "new_special_tokens": "Add them to the tokenizer and the model beforehand.",
    "pref_bco_weight": "Mix the losses: loss_type: [sigmoid, bco_pair] with loss_weights.",
}
_ELSEWHERE = (
    "do_train",
    "do_eval",
    "do_predict",
    "plot_loss",
    "overwrite_cache",
    "dataset_dir",
    "media_dir",
    "packing",
    "neat_packing",
    "use_fast_tokenizer",
    "ignore_pad_token_for_loss",
    "tokenized_path",
    "split_special_tokens",
    "include_num_input_tokens_seen",
    "upcast_layernorm",
    "upcast_lmhead_output",
    "print_param_status",
    "quantization_method",
    "low_cpu_mem_usage",
    "mask_history",
    "eval_on_each_dataset",
    "use_reentrant_gc",
)
_ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager"}


def from_llama_factory(migration: Migration) -> None:
    """Take the keys of a LLaMA-Factory config."""
    _loss(migration)
    _data(migration)
    _adapter(migration)
    migration.rename(_RENAMED)
    if ratio := migration.take("warmup_ratio"):
        migration.put("warmup_steps", ratio)  # below 1 it is a fraction of all steps
    if migration.take("disable_gradient_checkpointing"):
        migration.put("gradient_checkpointing", False)
    migration.put("attn_implementation", _ATTENTION.get(str(migration.take("flash_attn"))))
    if migration.take("pure_bf16"):
        migration.put("dtype", "bfloat16")
    migration.drop(_NO_COUNTERPART)
    migration.ignore(*_ELSEWHERE)
    migration.rename(
        {
            n: n
            for n in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type", "bf16")
        }
    )
    migration.other_defaults(
        {
            "max_length": 2048,
            "learning_rate": 5.0e-5,
            "num_train_epochs": 3.0,
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "linear",
            **({} if migration.left.get("fp16") else {"bf16": False}),
        }
    )


def _loss(migration: Migration) -> None:
    stage = migration.take("stage")
    if stage not in ("dpo", "kto"):
        raise MigrationError(
            f"stage: {stage} trains no preference loss. A recipe can have what stage: dpo and kto train."
        )
    loss = "kto" if stage == "kto" else str(migration.take("pref_loss", default="sigmoid"))
    beta = float(migration.take("pref_beta", default=0.1))
    gamma = float(migration.take("simpo_gamma", default=0.5))
    smoothing = migration.take("dpo_label_smoothing")
    if loss == "kto_pair":
        raise MigrationError("pref_loss: kto_pair has no counterpart. Choose another loss, or stage: kto.")
    if loss == "sigmoid" and smoothing:
        loss = "cdpo"
        migration.put("label_smoothing", smoothing)
    migration.put("loss_type", loss)
    if loss == "orpo":
        migration.put("loss_kwargs", {"orpo": {"lam": beta}})
    else:
        migration.put("beta", beta)
    if loss == "simpo":
        migration.put("loss_kwargs", {"simpo": {"gamma_beta_ratio": gamma / beta}})
    names = {"lambda_d": "kto_chosen_weight", "lambda_u": "kto_rejected_weight"}
    weights = {name: value for name, old in names.items() if (value := migration.take(old)) is not None}
    if weights and loss == "kto":
        migration.put("loss_kwargs", {"kto": weights})
    if weight := migration.take("pref_ftx"):
        migration.mix_with_sft(weight)


def _data(migration: Migration) -> None:
    names = migration.take("dataset")
    if not names:
        return
    first, *others = names if isinstance(names, list) else [name.strip() for name in str(names).split(",")]
    if others:
        migration.notes.append(
            f"dataset names {1 + len(others)} datasets, and the recipe only {first}. Join them first."
        )
    entry = _entry(migration, first)
    if entry is None:
        migration.put("dataset_name", first)
        migration.notes.append(
            f"dataset: {first} is a name of LLaMA-Factory's dataset_info.json, which isn't beside the config. Replace "
            "dataset_name by the Hub id, folder or file."
        )
        return
    migration.put("dataset_name", entry.get("hf_hub_url") or entry.get("file_name"))
    migration.put("dataset_config", entry.get("subset"))
    migration.put("dataset_train_split", entry.get("split"))
    used = {"prompt": "prompt", "messages": "prompt", "query": "query", "chosen": "chosen", "rejected": "rejected"}
    columns = {
        old: used[new]
        for new, old in (entry.get("columns") or {}).items()
        if new in used and old != used[new] and used[new] != "query"
    }
    if columns:
        pairs = ", ".join(f"{old}: {new}" for old, new in columns.items())
        migration.notes.append(f"The data's columns have other names. Map them: columns: {{{pairs}}}.")


def _entry(migration: Migration, name: str) -> dict[str, Any] | None:
    folder = migration.left.get("dataset_dir") or "data"
    for path in (migration.path.parent / folder / "dataset_info.json", migration.path.parent / "dataset_info.json"):
        if path.is_file():
            entry = json.loads(path.read_text(encoding="utf-8")).get(name)
            return entry if isinstance(entry, dict) else None
    return None


def _adapter(migration: Migration) -> None:
    kind = migration.take("finetuning_type", default="lora")
    if kind not in ("lora", "full"):
        raise MigrationError(f"finetuning_type: {kind} has no counterpart. A recipe can have lora or full.")
    rank = migration.take("lora_rank", default=8)
    alpha = migration.take("lora_alpha", default=2 * rank)
    dropout = migration.take("lora_dropout", default=0.0)
    target = migration.take("lora_target", default="all")
    bits = migration.take("quantization_bit")
    if kind == "full":
        return
    targets = [part.strip() for part in target.split(",")] if isinstance(target, str) else target
    migration.recipe |= {
        "use_peft": True,
        "lora_r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "lora_target_modules": "all-linear" if targets == ["all"] else targets,
    }
    if bits in (4, 8):
        migration.put(f"load_in_{bits}bit", True)
    elif bits is not None:
        migration.notes.append(f"quantization_bit: {bits} is left out. bitsandbytes has 4 and 8.")
