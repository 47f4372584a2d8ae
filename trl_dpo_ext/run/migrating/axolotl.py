"""Configs of axolotl with `rl: dpo`, `ipo`, `simpo`, `orpo` or `kto`."""

from __future__ import annotations

from typing import Any

from .migration import Migration, MigrationError

_RENAMED = {
    "base_model": "model_name_or_path",
    "revision_of_model": "model_revision",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "wandb_name": "run_name",
    "dpo_use_weighting": "use_weighting",
    "dpo_label_smoothing": "label_smoothing",
    "precompute_ref_log_probs": "precompute_ref_log_probs",
}
_NO_COUNTERPART = {
    "val_set_size": "Split the data beforehand, and name the split in dataset_test_split with eval_strategy.",
    "test_datasets": "Name a split of the dataset in dataset_test_split.",
    "chat_template": "The tokenizer's own chat template is used; change it in the model's folder.",
    "chat_template_jinja": "The tokenizer's own chat template is used; change it in the model's folder.",
    "special_tokens": "Set them in the tokenizer's folder.",
    "tokens": "Add them to the tokenizer and the model beforehand.",
    "added_tokens_overrides": "Set them in the tokenizer's folder.",
    "eot_tokens": "A response ends with the tokenizer's end token or the template's own.",
    "lora_model_dir": "Name the adapter's folder as model_name_or_path to go on from it.",
    "lora_on_cpu": "The loader has no such choice.",
    "fsdp": "Launch with an accelerate config: --accelerate_config fsdp2.",
    "fsdp_config": "Launch with an accelerate config: --accelerate_config fsdp2.",
    "fsdp_version": "Launch with an accelerate config: --accelerate_config fsdp2.",
    "tensor_parallel_size": "Launch with an accelerate config.",
    "context_parallel_size": "Sequences can't be split over processes.",
    "plugins": "Settings of plugins aren't read.",
    "loss_watchdog_threshold": "The guard stops a run whose loss is NaN or infinite.",
    "early_stopping_patience": "Set load_best_model_at_end to keep the best checkpoint.",
    "trainer_cls": "The trainer is this package's.",
    "max_prompt_len": "max_length limits prompt and response together.",
    "xformers_attention": "Use attn_implementation: sdpa.",
}
_ELSEWHERE = (
    "model_type",
    "tokenizer_type",
    "dataset_prepared_path",
    "dataset_processes",
    "sample_packing",
    "eval_sample_packing",
    "pad_to_sequence_len",
    "group_by_length",
    "train_on_inputs",
    "remove_unused_columns",
    "strict",
    "loss_watchdog_patience",
    "wandb_entity",
    "wandb_watch",
    "wandb_log_model",
    "shuffle_merged_datasets",
    "experimental_skip_move_to_device",
    "dp_shard_size",
    "dp_replicate_size",
    "save_safetensors",
    "local_rank",
    "is_llama_derived_model",
    "save_first_step",
)
_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo", "kto": "kto"}


def from_axolotl(migration: Migration) -> None:
    """Take the keys of an axolotl config."""
    _loss(migration)
    _data(migration)
    _adapter(migration)
    migration.rename(_RENAMED)
    _schedule(migration)
    _precision(migration)
    _tracking(migration)
    migration.drop(_NO_COUNTERPART)
    migration.ignore(*_ELSEWHERE)
    migration.other_defaults({"lr_scheduler_type": "cosine", "optim": "adamw_torch_fused", "weight_decay": 0.0})


def _loss(migration: Migration) -> None:
    method = migration.take("rl")
    if method not in _LOSSES:
        raise MigrationError(
            f"rl: {method} trains no preference loss. A recipe can have what rl: {', '.join(_LOSSES)} train."
        )
    trl = migration.take("trl") or {}
    beta = migration.take("rl_beta", "dpo_beta")
    beta = trl.get("beta") if trl.get("beta") is not None else beta
    weight = migration.take("orpo_alpha")
    migration.put("loss_type", migration.take("dpo_loss_type", default=_LOSSES[method]))
    migration.put("loss_weights", migration.take("dpo_loss_weights"))
    if method == "orpo":
        weight = beta if weight is None else weight
        migration.put("loss_kwargs", None if weight is None else {"orpo": {"lam": weight}})
    elif method == "simpo":
        _simpo(migration, 0.1 if beta is None else beta)
    else:
        migration.put("beta", beta)
    if method == "kto":
        names = {"lambda_d": "kto_desirable_weight", "lambda_u": "kto_undesirable_weight"}
        own = {name: migration.take(old) for name, old in names.items()}
        if given := {name: value for name, value in own.items() if value is not None}:
            migration.put("loss_kwargs", {"kto": given})
    if (alpha := migration.take("rpo_alpha")) is not None:
        migration.mix_with_sft(alpha)


def _simpo(migration: Migration, beta: float) -> None:
    # axolotl trains SimPO with TRL's CPOTrainer, which adds cpo_alpha (1.0 if unset) times the chosen NLL.
    alpha, gamma = migration.take("cpo_alpha", default=1.0), migration.take("simpo_gamma", default=0.5)
    migration.put("beta", beta)
    if alpha:
        migration.recipe |= {"loss_type": "cpo_simpo", "loss_kwargs": {"cpo_simpo": {"gamma": gamma, "alpha": alpha}}}
        migration.notes.append(
            f"With cpo_alpha {alpha}, rl: simpo also trains the likelihood of the chosen response: that is cpo_simpo."
        )
    else:
        migration.put("loss_kwargs", {"simpo": {"gamma_beta_ratio": gamma / beta}})


def _data(migration: Migration) -> None:
    datasets = migration.take("datasets") or []
    if not datasets:
        return
    first: dict[str, Any] = dict(datasets[0])
    migration.put("dataset_name", first.get("path"))
    migration.put("dataset_config", first.get("name"))
    migration.put("dataset_train_split", first.get("split"))
    if len(datasets) > 1:
        migration.notes.append(f"datasets has {len(datasets)} entries, and the recipe only the first. Join them first.")
    fields = {"field_messages": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
    columns = {first[old]: new for old, new in fields.items() if first.get(old) not in (None, new)}
    if isinstance(own := first.get("type"), dict):  # a user-defined format names its columns too
        names = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
        columns |= {own[old]: new for old, new in names.items() if own.get(old) not in (None, new)}
    if columns:
        pairs = ", ".join(f"{old}: {new}" for old, new in columns.items())
        migration.notes.append(f"The data's columns have other names. Map them: columns: {{{pairs}}}.")
    elif isinstance(own, str) and not own.startswith("chat_template"):
        migration.notes.append(
            f"type: {own} built the prompts. Here the tokenizer's chat template does; "
            "`trl-dpo-ext lint` says whether the columns are read."
        )


def _adapter(migration: Migration) -> None:
    if (adapter := migration.take("adapter")) is not None:
        if adapter not in ("lora", "qlora"):
            raise MigrationError(f"adapter: {adapter} has no counterpart. A recipe can have lora or qlora.")
        migration.put("use_peft", True)
    targets = migration.take("lora_target_modules")
    migration.put("lora_target_modules", "all-linear" if migration.take("lora_target_linear") else targets)
    if adapter is not None:
        migration.rename({name: name for name in ("lora_r", "lora_alpha", "lora_dropout")})
        migration.other_defaults({"lora_dropout": 0.0})


def _schedule(migration: Migration) -> None:
    ratio = migration.take("warmup_ratio")
    migration.put("warmup_steps", migration.take("warmup_steps") or ratio)  # below 1 it is a fraction of all steps
    epochs = float(migration.recipe.get("num_train_epochs") or 1)
    for old, strategy, steps in (
        ("saves_per_epoch", "save_strategy", "save_steps"),
        ("evals_per_epoch", "eval_strategy", "eval_steps"),
    ):
        if (count := migration.take(old)) is None:
            continue
        migration.put(strategy, "no" if not count else "epoch" if count == 1 else "steps")
        if count > 1:
            migration.put(steps, round(1 / (count * epochs), 6))  # below 1 it is a fraction of all steps
    if migration.recipe.get("eval_strategy", "no") != "no":
        migration.notes.append("Evaluation needs a test split: check dataset_test_split.")


def _precision(migration: Migration) -> None:
    for name in ("bf16", "fp16", "tf32"):
        value = migration.take(name)
        migration.put(name, True if value in ("auto", "full") else value)
    if (checkpointing := migration.take("gradient_checkpointing")) is not None:
        migration.put("gradient_checkpointing", bool(checkpointing))
    for flag, attention in (
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("flex_attention", "flex_attention"),
        ("eager_attention", "eager"),
    ):
        if migration.take(flag):
            migration.put("attn_implementation", attention)
    if any(migration.left.pop(name, None) for name in list(migration.left) if name.startswith("liger_")):
        migration.put("use_liger_kernel", True)


def _tracking(migration: Migration) -> None:
    trackers = []
    if project := migration.take("wandb_project"):
        trackers.append("wandb")
        migration.notes.append(f"Set the environment variable WANDB_PROJECT={project}.")
    for flag, tracker in (("use_tensorboard", "tensorboard"), ("use_mlflow", "mlflow"), ("use_trackio", "trackio")):
        if migration.take(flag):
            trackers.append(tracker)
    migration.put("report_to", trackers or None)
    if migration.left.get("hub_model_id"):
        migration.put("push_to_hub", True)
