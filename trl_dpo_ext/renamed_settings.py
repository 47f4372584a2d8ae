"""What settings of older versions of TRL and transformers, and of other trainers, are called here."""

from __future__ import annotations

# Old name -> the setting that replaces it.
_RENAMED = {
    # transformers
    "evaluation_strategy": "eval_strategy",
    "hub_model_name": "hub_model_id",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torch_dtype": "dtype",
    "use_liger": "use_liger_kernel",
    "use_mps_device": "use_cpu: false",
    "warmup_ratio": "warmup_steps (below 1 it is a fraction of all steps)",
    # TRL
    "use_liger_loss": "use_liger_kernel",
    # the alignment handbook and other trainers
    "base_model": "model_name_or_path",
    "dataset": "dataset_name",
    "dataset_configs": "dataset_config",
    "dataset_path": "dataset_name",
    "epochs": "num_train_epochs",
    "flash_attention": "attn_implementation: flash_attention_2",
    "load_in_4_bit": "load_in_4bit",
    "load_in_8_bit": "load_in_8bit",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "micro_batch_size": "per_device_train_batch_size",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "preprocessing_num_workers": "dataset_num_proc",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "use_flash_attention_2": "attn_implementation: flash_attention_2",
    "flash_attn": "attn_implementation: flash_attention_2",
}
# Old name -> a sentence, where no single setting replaces it.
_REPLACED = {
    "cpo_alpha": "Put it in loss_kwargs: {cpo: {alpha: ALPHA}}.",
    "dataset_mixer": "A recipe has one dataset: name it in dataset_name.",
    "dataset_splits": "Name the splits in dataset_train_split and dataset_test_split.",
    "force_use_ref_model": "Remove it: a loss that reads a reference always has one.",
    "gamma": "Put a loss's hyperparameters in loss_kwargs, for example {simpo: {gamma_beta_ratio: 0.5}}.",
    "generate_during_eval": "Set reward and frontier_steps to sample during training.",
    "group_by_length": "Remove it: rows of similar length can't be grouped; packing fills the padding instead.",
    "is_encoder_decoder": "Remove it: only decoder models can be trained.",
    "label_pad_token_id": "Remove it: nothing is padded with labels.",
    "max_completion_length": "max_length limits prompt and completion together.",
    "max_prompt_length": "max_length limits prompt and completion together.",
    "max_target_length": "max_length limits prompt and completion together.",
    "model_adapter_name": "Remove it: the adapter that is trained is found by itself.",
    "padding_value": "Remove it: batches are padded with the tokenizer's pad token; pad_token sets it.",
    "ref_adapter_name": "Remove it: the reference is the model that training begins with.",
    "ref_model": "The reference is the model that training begins with; in Python, PreferenceTrainer takes another.",
    "ref_model_name_or_path": "The reference is the model that training begins with; in Python, PreferenceTrainer "
    "takes another.",
    "reference_free": "Choose a loss that reads no reference; `trl-dpo-ext losses --reference-free` lists them.",
    "rpo_alpha": "Use loss_type: [dpo, sft] with loss_weights: [1.0, ALPHA].",
    "sft_weight": "Use loss_type: [LOSS, sft] with loss_weights: [1.0, WEIGHT].",
    "simpo_gamma": "Set the ratio of gamma to beta in loss_kwargs: {simpo: {gamma_beta_ratio: 0.5}}.",
    "use_logits_to_keep": "Remove it: only completions go through the head already.",
    "use_num_logits_to_keep": "Remove it: only completions go through the head already.",
}


def hint(name: str) -> str:
    """Return what to write instead of a setting that was renamed or removed, with a space before it; or "".

    >>> hint("torch_dtype")
    ' It is called dtype here.'
    >>> hint("beta")
    ''
    """
    key = name.replace("-", "_").lower()
    if key in _RENAMED:
        return f" It is called {_RENAMED[key]} here." if ":" not in _RENAMED[key] else f" Use {_RENAMED[key]}."
    return f" {_REPLACED[key]}" if key in _REPLACED else ""
