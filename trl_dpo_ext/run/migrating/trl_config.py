"""Configs of TRL (`trl dpo`, 0.x and 1.x) and of the alignment handbook, which has TRL's keys and its own for data."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from .migration import Migration, MigrationError

_RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "use_liger": "use_liger_kernel",
    "use_liger_loss": "use_liger_kernel",
    "no_cuda": "use_cpu",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
}
_NO_COUNTERPART = {
    "max_prompt_length": "max_length limits prompt and response together.",
    "max_completion_length": "max_length limits prompt and response together.",
    "max_target_length": "max_length limits prompt and response together.",
    "generate_during_eval": "Set reward and frontier_steps to sample during training.",
    "group_by_length": "Rows of similar length can't be grouped; packing fills the padding instead.",
    "ref_model_init_kwargs": "The reference is the model that training begins with.",
    "ref_model_name_or_path": "The reference is the model that training begins with.",
    "chat_template": "The tokenizer's own chat template is used; change it in the model's folder.",
}
# Layouts and internals that are chosen by themselves here.
_BY_ITSELF = (
    "padding_free",
    "use_logits_to_keep",
    "use_num_logits_to_keep",
    "label_pad_token_id",
    "padding_value",
    "force_use_ref_model",
    "is_encoder_decoder",
    "model_adapter_name",
    "ref_adapter_name",
    "remove_unused_columns",
    "do_eval",
    "do_train",
    "log_level",
    "hub_model_revision",
    "ignore_bias_buffers",
)
# Trainers of TRL that a config doesn't name; its path usually does.
_OTHER_METHODS = ("orpo", "cpo", "kto", "bco")


def from_trl(migration: Migration) -> None:
    """Take the keys of TRL's DPO, ORPO, CPO, KTO and BCO configs."""
    migration.rename(_RENAMED)
    _data(migration)
    _loss(migration)
    if (ratio := migration.take("warmup_ratio")) and "warmup_steps" not in migration.left:
        migration.put("warmup_steps", ratio)  # below 1 it is a fraction of all steps
    if migration.take("use_flash_attention_2"):
        migration.put("attn_implementation", "flash_attention_2")
    if "eval_strategy" not in {**migration.left, **migration.recipe} and migration.left.get("do_eval"):
        migration.put("eval_strategy", "epoch")
        migration.notes.append("do_eval: true alone evaluates nothing while training; eval_strategy: epoch is set.")
    migration.drop(_NO_COUNTERPART)
    migration.ignore(*_BY_ITSELF)


def _data(migration: Migration) -> None:
    if mixer := migration.take("dataset_mixer"):
        name, *others = mixer
        migration.put("dataset_name", name)
        if others:
            migration.notes.append(
                f"dataset_mixer names {len(mixer)} datasets, and the recipe only the first, {name}. Join them first."
            )
        elif mixer[name] != 1.0:
            migration.notes.append(f"dataset_mixer takes {mixer[name]} of {name}; the recipe takes all of it.")
    if splits := migration.take("dataset_splits"):
        for split in splits:
            migration.put("dataset_test_split" if "test" in split else "dataset_train_split", split)
    if configs := migration.take("dataset_configs"):
        migration.put("dataset_config", configs[0] if isinstance(configs, list) else configs)
    if mixture := migration.take("dataset_mixture"):
        _mixture(migration, mixture)


def _mixture(migration: Migration, mixture: Any) -> None:
    datasets = mixture.get("datasets") if isinstance(mixture, dict) else mixture
    if not datasets:
        return
    first = datasets[0]
    migration.put("dataset_name", first.get("id") or first.get("path"))
    migration.put("dataset_config", first.get("config") or first.get("name"))
    migration.put("dataset_train_split", first.get("split"))
    if len(datasets) > 1:
        migration.notes.append(
            f"dataset_mixture names {len(datasets)} datasets, and the recipe only the first. Join them first."
        )


def _loss(migration: Migration) -> None:
    left = migration.left
    method = next((m for m in _OTHER_METHODS if m in _words(migration.path)), "dpo")
    if {"desirable_weight", "undesirable_weight"} & set(left) and method == "dpo":
        method = "kto"
    loss = migration.take("loss_type", default={"dpo": "sigmoid", "cpo": "sigmoid"}.get(method, method))
    if method != "dpo":
        migration.notes.append(f"The path or the keys say {method.upper()}; check that loss_type is what you meant.")
    if loss == "kto_pair":
        raise MigrationError("loss_type: kto_pair was removed from TRL and has no counterpart. Choose another loss.")
    beta = migration.take("beta")
    if method == "cpo" or {"cpo_alpha", "simpo_gamma"} & set(left):
        _cpo(migration, str(loss), beta)
    elif method == "orpo":
        migration.put("loss_type", "orpo")
        migration.put("loss_kwargs", None if beta is None else {"orpo": {"lam": beta}})
    elif method == "kto":
        weights = {
            name.replace("weight", "lambda"): value
            for name in ("desirable_weight", "undesirable_weight")
            if (value := migration.take(name)) is not None
        }
        migration.put("loss_type", loss)
        migration.put("beta", beta)
        migration.put("loss_kwargs", {loss: _lambdas(weights)} if weights else None)
    else:
        migration.put("loss_type", "reference_free_dpo" if migration.take("reference_free") else loss)
        migration.put("loss_weights", migration.take("loss_weights"))
        migration.put("beta", beta)
    if (alpha := migration.take("rpo_alpha")) is not None:
        migration.mix_with_sft(alpha)


def _lambdas(weights: dict[str, float]) -> dict[str, float]:
    names = {"desirable_lambda": "lambda_d", "undesirable_lambda": "lambda_u"}
    return {names[name]: value for name, value in weights.items()}


def _cpo(migration: Migration, loss: str, beta: float | None) -> None:
    # With `loss_type: simpo`, CPOTrainer trains SimPO only where cpo_alpha is 0; unset it is 1.
    alpha = migration.take("cpo_alpha", default=1.0)
    gamma = migration.take("simpo_gamma", default=0.5)
    beta = 0.1 if beta is None else beta
    if loss != "simpo":
        migration.recipe |= {"loss_type": "cpo", "beta": beta, "loss_kwargs": {"cpo": {"alpha": alpha}}}
    elif alpha:
        own = {"gamma": gamma, "alpha": alpha}
        migration.recipe |= {"loss_type": "cpo_simpo", "beta": beta, "loss_kwargs": {"cpo_simpo": own}}
        migration.notes.append(
            f"With cpo_alpha {alpha}, loss_type: simpo also trains the likelihood of the chosen response: cpo_simpo."
        )
    else:
        own = {"gamma_beta_ratio": gamma / beta}
        migration.recipe |= {"loss_type": "simpo", "beta": beta, "loss_kwargs": {"simpo": own}}


def _words(path: PurePath) -> set[str]:
    text = "/".join(path.parts[-3:]).lower()
    return set("".join(c if c.isalnum() else " " for c in text).split())
