"""Checks before a run: the trainer's arguments, the columns that the losses need, disk space for a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn

from ..._compat.deepspeed import full_size
from ..._compat.trl import text_tokenizer
from ...data.data_error import DataError, FaultReason
from ...data.format import reading_of
from ...data.lint import log_findings
from ...data.lint.findings_report import Report
from ...data.row_reading.values import parse_list
from ...losses import list_losses
from ..config import PreferenceConfig
from ..errors import ConfigError, DiskSpaceError
from ..objective import Objective
from ..publish import check_push
from ..readable import Facts, readable
from .adapter_checks import check_quantization, check_reference_adapter, check_second_model, check_target_modules
from .hardware import check_attention, check_sharding
from .model_folder import check_model


def check_arguments(
    model: Any, ref_model: Any, args: PreferenceConfig, kwargs: Mapping[str, Any], objective: Objective
) -> None:
    """Reject arguments that can't work together.

    Args:
        model, ref_model, args: arguments of the trainer.
        kwargs: its other arguments.
        objective: the losses that `args` configures.

    Raises:
        FileNotFoundError, ModelFolderError: the model folder is missing or broken.
        ConfigError: an argument isn't supported, or doesn't work with another one.
    """
    if isinstance(model, str):
        check_model(model, needs_tokenizer=kwargs.get("processing_class") is None)
    if isinstance(ref_model, str):
        check_model(ref_model, needs_tokenizer=False)
    check_second_model(model, ref_model)
    check_push(model, args)
    if ref_model is not None and not objective.reads_reference:
        raise ConfigError(f"ref_model is set, but none of {args.loss_type} reads the reference. Remove it.")
    for name, instead in {
        "compute_metrics": "the logged metrics cover rankings; use trl_dpo_ext.evaluation to evaluate samples",
        "data_collator": "the trainer lays out the rows itself; remove it",
    }.items():
        if kwargs.get(name) is not None:
            raise ConfigError(f"{name} is not supported here: {instead}.")
    quantization_config, peft_config = kwargs.get("quantization_config"), kwargs.get("peft_config")
    check_attention(model, args)
    check_sharding(args, quantization_config)
    check_quantization(model, quantization_config, peft_config, args)
    check_target_modules(model, peft_config, args)
    if objective.reads_reference:
        check_reference_adapter(model, ref_model, peft_config, args)


_ROWS_AT_A_TIME = 1000


def check_dataset_type(dataset: Any, name: str) -> None:
    """Reject anything but a single dataset of the `datasets` library.

    Raises:
        TypeError: it is a list of rows, a dict of splits, ...
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"{name} dataset: it is a {type(dataset).__name__}, expected a datasets.Dataset or IterableDataset. "
            "Convert a list of rows with Dataset.from_list. Pass a single split of a dict of splits."
        )


def check_labels(dataset: Any, objective: Objective, name: str) -> None:
    """Reject a dataset from which no configured loss learns anything, because it compares nothing.

    These are single responses with a label or a score, and labels of one kind for each prompt.

    Raises:
        DataError: so it is; the message names losses that read such data.
    """
    if objective.reads.single_responses:
        return
    dataset = dataset.with_format(None)
    reading = reading_of(dataset, name)
    if reading.form.response_columns == ("completion",):
        held = "single responses"
    elif reading.form.labels_column and reading.export is None and _one_kind(dataset, reading.form.labels_column):
        held = "labels of one kind for each prompt"
    else:
        return
    what = "labels" if reading.form.labels_column else "scores"
    fitting = [spec.name for spec in list_losses() if spec.single_responses and what in spec.needs]
    names = ", ".join(term.spec.name for term in objective.terms)
    hint = f"Losses that read them: {', '.join(fitting)}." if fitting else "No registered loss reads them."
    raise DataError(
        f"{name} dataset: it holds {held} ({', '.join(reading.form.columns)}), so there is nothing that {names} could "
        f"compare. {hint} Or give prompts several responses, better and worse ones.",
        FaultReason.FEWER_THAN_TWO_RESPONSES,
    )


def _one_kind(dataset: Any, column: str) -> bool:
    """Return whether all labels of each row are the same; of a stream, the first thousand rows count."""
    rows = islice(dataset, 1000) if isinstance(dataset, IterableDataset) else dataset
    labels = (parse_list(row[column]) for row in rows)
    return all(not isinstance(row, list) or len({str(label) for label in row}) < 2 for row in labels)


def check_needs(dataset: Any, objective: Objective, name: str) -> None:
    """Reject a dataset without the columns that the losses read.

    Raises:
        DataError: a loss reads scores, labels or scores of the reference, but the dataset has none.
    """
    columns = dataset.column_names or next(iter(dataset))
    if "scores" in objective.needs and "scores" not in columns:
        losses = [term.spec.name for term in objective.terms if "scores" in term.spec.needs]
        raise DataError(
            f"{name} dataset: {', '.join(losses)} reads scores, but the dataset has none. Provide the columns prompt, "
            "completions and scores, or choose a loss that only reads ranks."
        )
    if "reference_scores" in objective.needs and "reference_scores" not in columns:
        losses = [term.spec.name for term in objective.terms if "reference_scores" in term.spec.needs]
        raise DataError(
            f"{name} dataset: {', '.join(losses)} reads the scores of samples of the reference, but the dataset has no "
            "column reference_scores. Add it: a list of numbers for each prompt."
        )
    if "labels" in objective.needs and isinstance(dataset, Dataset) and not _has_labels(dataset):
        losses = [term.spec.name for term in objective.terms if "labels" in term.spec.needs]
        raise DataError(
            f"{name} dataset: {', '.join(losses)} reads labels, but no row has any. Provide the columns prompt, "
            "completion and label, or set derive_labels: true to label the best responses desirable."
        )


def check_every_loss_is_fed(dataset: Any, objective: Objective, name: str) -> None:
    """Reject a mix of losses of which one can read no row; a streamed dataset isn't checked.

    Raises:
        DataError: so it is; the message names the loss and what it reads.
    """
    if len(objective.terms) < 2 or not isinstance(dataset, Dataset):
        return
    unfed = {term.spec.name: term.spec for term in objective.terms}
    for start in range(0, len(dataset), _ROWS_AT_A_TIME):
        rows = list(dataset.select(range(start, min(start + _ROWS_AT_A_TIME, len(dataset)))))
        facts = Facts.of_rows(rows)
        unfed = {loss: spec for loss, spec in unfed.items() if not readable(spec, facts).any()}
        if not unfed:
            return
    loss, spec = next(iter(unfed.items()))
    needs = (
        ", ".join(sorted(spec.needs - {"token_logps", "mismatched", "weight"})) or "two responses that differ in rank"
    )
    raise DataError(
        f"{name} dataset: {loss} can read none of its {len(dataset)} rows; it needs {needs}. Add such rows, or remove "
        "the loss from loss_type.",
        FaultReason.OTHER,
    )


def _has_labels(dataset: Dataset) -> bool:
    if "labels" not in dataset.column_names:
        return False
    return any(label is not None for labels in dataset["labels"] for label in labels)


def log_data_findings(trainer: Any, train_dataset: Any, eval_dataset: Any) -> Report:
    """Run the linter on a trainer's datasets, log a summary, and return the report.

    Args:
        trainer: a `PreferenceTrainer`; its datasets are tokenized.
        train_dataset, eval_dataset: the same datasets as text.
    """

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
    """Check that the first checkpoint fits on the disk.

    Raises:
        DiskSpaceError: the disk of `output_dir` has no room for the trainable weights, two optimizer moments and, with
            `sync_ref_model`, the reference weights.
    """
    if str(args.save_strategy) in ("no", "SaveStrategy.NO"):
        return
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = sum(full_size(p) * p.element_size() for p in trainable) * (2 if args.sync_ref_model else 1)
    moments = 0 if args.save_only_model else 2 * 4 * sum(full_size(p) for p in trainable)
    existing = Path(os.path.abspath(str(args.output_dir)))
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if weights + moments > free:
        raise DiskSpaceError(
            f"A checkpoint takes about {(weights + moments) / 1e9:.2f} GB, but the disk of "
            f"output_dir={args.output_dir!r} has {free / 1e9:.2f} GB free. Free some space, choose another output_dir, "
            "or set save_strategy='no'."
        )
