"""What a run is: the settings that change its weights, saved with each checkpoint and compared on resuming."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import IterableDataset

# Every field of the configuration is compared, but for these. None of them changes what a step trains.
MAY_CHANGE = frozenset(
    (
        # How long the run is. A schedule that depends on it goes on with the new length, which is logged.
        *("max_steps", "num_train_epochs"),
        # Where it is written to, and under which name.
        *("output_dir", "run_name", "project", "resume_from_checkpoint", "resume_from_hub"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "hub_base_model", "hub_base_revision"),
        # What is logged, saved and evaluated, and when.
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
        *("include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "logging_dir"),
        *("save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
        *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
        *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "use_cache"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("do_train", "do_eval", "do_predict"),
        # How the same numbers are computed: memory, speed, layout of the rows, where reference log-probs come from.
        *("activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config"),
        *("prefix_sharing", "responses_per_pass", "packing", "padding_free", "precompute_ref_log_probs"),
        *("precompute_ref_batch_size", "ref_cache_dir", "full_determinism", "debug", "skip_memory_metrics"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("dataset_num_proc", "remove_unused_columns", "label_names", "length_column_name"),
        # Devices and processes: complete.json names the engine. The prompts of a step are compared as `step_prompts`.
        *("per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size", "use_cpu"),
        *("average_tokens_across_devices", "parallelism_config", "local_rank", "fsdp", "fsdp_config", "deepspeed"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("ddp_backend", "ddp_timeout", "trust_remote_code"),
        # Compared by what they do: the losses with their values, and the rows.
        *("loss_type", "loss_weights", "loss_kwargs", "beta", "label_smoothing", "discopop_tau"),
        *("invalid_rows", "max_length", "truncation_mode", "pad_to_multiple_of", "pad_token"),
        # Where best checkpoints and data are looked for on resuming.
        "ignore_data_skip",
    )
)
# Of those, what every process must have alike, or one would wait for a step, an evaluation or a file of the others.
_RHYTHM = (
    *("max_steps", "num_train_epochs", "output_dir", "resume_from_checkpoint", "resume_from_hub"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"),
    *("save_strategy", "save_steps", "save_only_model", "load_best_model_at_end", "metric_for_best_model"),
    *("greater_is_better", "logging_strategy", "logging_steps", "logging_first_step"),
    *("gradient_checkpointing", "prefix_sharing", "responses_per_pass", "padding_free", "precompute_ref_log_probs"),
    *("precompute_ref_batch_size", "push_to_hub", "hub_strategy", "bf16_full_eval", "fp16_full_eval"),
)
# Of `model_init_kwargs`: how the same model is loaded and run.
_LOADING = ("attn_implementation", "device_map", "low_cpu_mem_usage", "trust_remote_code", "use_cache")
# Of an adapter's settings: names of files and versions.
_ADAPTER_FILES = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "task_type")

RunSettings = dict[str, Any]


def run_settings(args: Any, objective: Any, dataset: Any) -> RunSettings:
    """Return the settings that change what a run trains, by name, ready for JSON.

    Args:
        args: the `PreferenceConfig`.
        objective: its losses.
        dataset: the training dataset; the number of files counts if it is streamed.
    """
    found = {name: value for name, value in args.to_dict().items() if name not in MAY_CHANGE}
    loading = {k: v for k, v in (found.pop("model_init_kwargs", None) or {}).items() if k not in _LOADING}
    found["model_init_kwargs"] = {key: value for key, value in loading.items() if value is not None}
    found["losses"] = {term.spec.name: {"weight": term.weight, **term.hyperparameters} for term in objective.terms}
    found["step_prompts"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if isinstance(dataset, IterableDataset):
        found["streamed_files"] = dataset.num_shards
    return _plain(found)


def shared_settings(args: Any) -> RunSettings:
    """Return the settings that may change from run to run, but not between the processes of one, ready for JSON.

    Args:
        args: the `PreferenceConfig`.
    """
    return _plain({name: getattr(args, name) for name in _RHYTHM})


def adapter_settings(model: Any) -> RunSettings:
    """Return the settings of the adapters that are trained and the names of what is trained, ready for JSON.

    Args:
        model: as it is trained, not wrapped.
    """
    trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    adapters = {
        name: {key: value for key, value in config.to_dict().items() if key not in _ADAPTER_FILES}
        for name, config in (getattr(model, "peft_config", None) or {}).items()
        if any(f".{name}." in weight for weight in trained)  # others are the reference's
    }
    digest = hashlib.sha256("\n".join(trained).encode()).hexdigest()[:12]
    return _plain({"adapter": adapters, "trained_weights": f"{len(trained)} tensors, names {digest}"})


def changes(then: Mapping[str, Any], now: Mapping[str, Any], words: tuple[str, str] = ("then", "now")) -> list[str]:
    """Return a clause for each value that differs.

    A name that only one side has is a setting that another version of a library lacks, or that isn't known yet, such
    as the adapter's before the model is loaded. The name of a loss or an adapter counts.

    Args:
        then: the settings of a checkpoint.
        now: those of the run.
        words: what the two sides are called.

    Example:
        >>> changes({"seed": 1, "adapter": {"r": 4}}, {"seed": 2, "adapter": {"r": 4}, "new": 0})
        ['seed: then 1, now 2']
    """
    return [f"{name}: {words[0]} {_shown(old)}, {words[1]} {_shown(new)}" for name, old, new in _changes(then, now, "")]


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(then.keys() | now.keys()):
        if name not in then or name not in now:
            continue
        both = isinstance(then[name], dict) and isinstance(now[name], dict)
        if both and not prefix and name in ("losses", "adapter") and then[name].keys() != now[name].keys():
            yield name, then[name], now[name]
        elif both:
            yield from _changes(then[name], now[name], f"{prefix}{name}.")
        elif then[name] != now[name]:
            yield f"{prefix}{name}", then[name], now[name]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back, with sets sorted."""
    if isinstance(value, Mapping):
        return {str(getattr(key, "value", key)): _plain(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
