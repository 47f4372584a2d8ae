"""Check a trainer's datasets and tokenize their rows, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from ..data.format import format_dataset
from ..data.mismatched import COLUMN, with_mismatched
from ..data.mixture import separate_forms
from ..data.tokenize import tokenize_dataset
from .config import PreferenceConfig
from .objective import Objective
from .preflight import run_checks


def check_rows(dataset: Any, objective: Objective, args: PreferenceConfig, name: str) -> Any:
    """Bring a dataset in any accepted form to the internal form.

    Raises:
        TypeError: it isn't a dataset of the `datasets` library.
        DataError: unusable rows, or columns that a loss needs are missing.
    """
    run_checks.check_dataset_type(dataset, name)
    if not is_tokenized(dataset):
        if isinstance(dataset, Dataset):
            dataset = separate_forms(dataset, name=name, num_proc=args.dataset_num_proc)
        run_checks.check_labels(dataset, objective, name)
        dataset = format_dataset(
            dataset,
            name=name,
            invalid_rows=args.invalid_rows,
            reads=objective.reads,
            num_proc=args.dataset_num_proc,
        )
    run_checks.check_needs(dataset, objective, name)
    run_checks.check_every_loss_is_fed(dataset, objective, name)
    return dataset


def tokenize_rows(dataset: Any, tokenizer: Any, objective: Objective, args: PreferenceConfig, name: str) -> Any:
    """Tokenize a dataset in the internal form; one that is tokenized already only gets what the losses read besides."""
    with args.main_process_first(desc=f"preparing the {name} dataset"):
        if not is_tokenized(dataset):
            dataset = tokenize_dataset(
                dataset,
                tokenizer,
                name=name,
                max_length=args.max_length,
                reads=objective.reads,
                invalid_rows=args.invalid_rows,
                num_proc=args.dataset_num_proc,
            )
        if objective.reads.mismatched and COLUMN not in (dataset.column_names or next(iter(dataset), {})):
            dataset = with_mismatched(dataset, name=name, max_length=args.max_length)
    return dataset


def is_tokenized(dataset: Any) -> bool:
    """Return whether a dataset has the columns that the collator reads."""
    columns: Any = dataset.column_names or next(iter(dataset), {})
    return {"prompt_ids", "completion_ids", "ranks"} <= set(columns)


def by_name(dataset: Any) -> dict[str, Any]:
    """Return evaluation datasets by name. A single dataset is named "eval"."""
    return dataset if isinstance(dataset, dict) else {} if dataset is None else {"eval": dataset}


def map_by_name(dataset: Any, change: Callable[[str, Any], Any]) -> Any:
    """Apply `change(name, dataset)` to one dataset, or to each of a dict; None stays None."""
    changed = {name: change(name, part) for name, part in by_name(dataset).items()}
    return changed if isinstance(dataset, dict) else changed.get("eval")
