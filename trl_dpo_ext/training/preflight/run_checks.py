"""Checks that run before anything expensive: what was given, what the losses need, whether a checkpoint fits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn

from ..._compat.trl import text_tokenizer
from ...data.lint import log_findings
from ...data.lint.report import Report
from ...data.rows import DataError
from ..config import PreferenceConfig
from ..errors import ConfigError, DiskSpaceError
from ..objective import Objective
from ..publish import check_push
from .adapter_checks import check_quantization, check_reference_adapter, check_second_model, check_target_modules
from .hardware import check_sharding
from .model_folder import check_model


def check_arguments(
    model: Any, ref_model: Any, args: PreferenceConfig, kwargs: Mapping[str, Any], objective: Objective
) -> None:
    """Refuse arguments that can't work together.

    Raises:
        FileNotFoundError, ModelFolderError, ConfigError.
    """
    if isinstance(model, str):
        check_model(model, needs_tokenizer=kwargs.get("processing_class") is None)
    if isinstance(ref_model, str):
        check_model(ref_model, needs_tokenizer=False)
    check_second_model(model, ref_model)
    check_push(model, args)
    if ref_model is not None and not objective.reads_reference:
        raise ConfigError(f"ref_model is given, but none of {args.loss_type} reads a reference. Remove it.")
    for name, instead in {
        "compute_metrics": "rankings are in the logged metrics; evaluate samples with trl_dpo_ext.evaluation",
        "data_collator": "rows are laid out by the trainer",
    }.items():
        if kwargs.get(name) is not None:
            raise ConfigError(f"{name} is not supported here: {instead}.")
    quantization_config, peft_config = kwargs.get("quantization_config"), kwargs.get("peft_config")
    check_sharding(args, quantization_config)
    check_quantization(model, quantization_config, peft_config, args)
    check_target_modules(model, peft_config, args)
    if objective.reads_reference:
        check_reference_adapter(model, ref_model, peft_config, args)


def check_dataset_type(dataset: Any, name: str) -> None:
    """Refuse anything but one dataset of the `datasets` library.

    Raises:
        TypeError: a list of rows, a dictionary of splits, ...
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"{name} dataset: it is a {type(dataset).__name__}, expected a datasets.Dataset or IterableDataset. "
            "Dataset.from_list makes one from a list of rows; of a dictionary of splits, give one."
        )


def check_needs(dataset: Any, objective: Objective, name: str) -> None:
    """Refuse a dataset that lacks what a loss reads.

    Raises:
        DataError: scores are needed and the dataset has none.
    """
    columns = dataset.column_names or next(iter(dataset))
    if "scores" in objective.needs and "scores" not in columns:
        losses = [term.spec.name for term in objective.terms if "scores" in term.spec.needs]
        raise DataError(
            f"{name} dataset: {', '.join(losses)} reads scores, and there are none. Give the columns prompt, "
            "completions and scores, or choose a loss that reads ranks only."
        )


def log_data_findings(trainer: Any, train_dataset: Any, eval_dataset: Any) -> Report:
    """Log in short what the linter finds in a new trainer's data, which are given here as text, and return it."""

    def named(train: Any, evaluation: Any) -> dict[str, Any]:
        others = evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
        return {"train": train, **{name: dataset for name, dataset in others.items() if dataset is not None}}

    return log_findings(
        named(train_dataset, eval_dataset),
        named(trainer.train_dataset, trainer.eval_dataset),
        text_tokenizer(trainer.processing_class),
        generation_config=getattr(trainer.model, "generation_config", None),
        max_length=trainer.args.max_length,
    )


def check_disk(model: nn.Module, args: PreferenceConfig) -> None:
    """Refuse to start a run whose first checkpoint can't be written.

    Raises:
        DiskSpaceError: less is free on the disk of `output_dir` than trainable weights, two optimizer moments, and a
            reference that moves take.
    """
    if str(args.save_strategy) in ("no", "SaveStrategy.NO"):
        return
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in trainable) * (2 if args.sync_ref_model else 1)
    moments = 0 if args.save_only_model else 2 * 4 * sum(p.numel() for p in trainable)
    existing = Path(os.path.abspath(str(args.output_dir)))
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if weights + moments > free:
        raise DiskSpaceError(
            f"A checkpoint takes about {(weights + moments) / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on the "
            f"disk of output_dir={args.output_dir!r}. Free some, choose another output_dir, or set save_strategy='no'."
        )
