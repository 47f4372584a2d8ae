"""The splits that a recipe's run reads."""

from __future__ import annotations

import functools
from typing import Any

from ..data import DataError, convert_dataset, load_splits, map_columns, mix_datasets
from ..training import PreferenceConfig
from .mixture_settings import parse_mixture
from .recipe_settings import Recipe


def load_recipe_splits(recipe: Recipe) -> dict[str, Any]:
    """Load and convert the splits that a run reads.

    Returns:
        The dataset under "train" and, if the run evaluates, the one under "test".

    Raises:
        DataError, FileNotFoundError: no such dataset or split, or rows that can't be converted.
    """
    arguments, config = recipe.arguments, recipe.config
    if arguments.dataset_mixture:
        return _mixture(recipe)
    dataset = load_splits(
        str(arguments.dataset_name),
        config=arguments.dataset_config,
        streaming=arguments.dataset_streaming,
        needs=arguments.dataset_train_split,
    )
    splits = {"train": dataset[arguments.dataset_train_split]}
    for option, used in (("reward", arguments.reward), ("eval_strategy", config.eval_strategy != "no")):
        if used and arguments.dataset_test_split not in dataset:
            raise DataError(
                f"{option} is set, but there is no split {arguments.dataset_test_split!r}; the dataset has: "
                f"{', '.join(dataset)}. Name one in dataset_test_split."
            )
        if used:
            splits["test"] = dataset[arguments.dataset_test_split]
    columns = arguments.columns if isinstance(arguments.columns, dict) else {}
    return _in_accepted_form(splits, columns, arguments.dataset_converter, config)


def _in_accepted_form(
    splits: dict[str, Any], columns: dict[str, str | None], converter: str | None, config: PreferenceConfig
) -> dict[str, Any]:
    if columns:
        splits = {name: map_columns(split, columns, name=name) for name, split in splits.items()}
    if converter is None:
        return splits
    with config.main_process_first(desc="converting the dataset"):
        return {
            name: convert_dataset(
                split, converter, name=name, invalid_rows=config.invalid_rows, num_proc=config.dataset_num_proc
            )
            for name, split in splits.items()
        }


def _mixture(recipe: Recipe) -> dict[str, Any]:
    config = recipe.config
    parts: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    datasets = parse_mixture(recipe.arguments.dataset_mixture)
    for number, one in enumerate(datasets):
        loaded = load_splits(one.path, config=one.name, needs=one.split)
        for part, split in (("train", one.split), ("test", one.test_split)):
            if split is None:
                continue
            if split not in loaded:
                raise DataError(f"{one.path}: there is no split {split!r}; it has: {', '.join(loaded)}.")
            title = f"{one.path}[{split}] (entry {number} of dataset_mixture)"
            parts[part] |= _in_accepted_form({title: loaded[split]}, one.columns, one.converter, config)
    evaluates = bool(recipe.arguments.reward) or config.eval_strategy != "no"
    if evaluates and not parts["test"]:
        raise DataError("The run evaluates, but no entry of dataset_mixture has a test_split. Name one.")
    mixed = functools.partial(mix_datasets, invalid_rows=config.invalid_rows, num_proc=config.dataset_num_proc)
    fractions = [one.fraction for one in datasets if one.fraction is not None] or None
    with config.main_process_first(desc="mixing the datasets"):
        splits = {"train": mixed(parts["train"], fractions)}
        if evaluates:
            splits["test"] = mixed(parts["test"])
    return splits
