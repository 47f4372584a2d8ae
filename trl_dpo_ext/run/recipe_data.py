"""The splits that a recipe's run reads."""

from __future__ import annotations

from typing import Any

from ..data import DataError, convert_dataset, load_splits, map_columns
from .recipe_settings import Recipe


def load_recipe_splits(recipe: Recipe) -> dict[str, Any]:
    """Load and convert the splits that a run reads.

    Returns:
        The dataset under "train" and, if the run evaluates, the one under "test".

    Raises:
        DataError, FileNotFoundError: no such dataset or split, or rows that can't be converted.
    """
    arguments, config = recipe.arguments, recipe.config
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
    if isinstance(arguments.columns, dict) and arguments.columns:
        splits = {name: map_columns(split, arguments.columns, name=name) for name, split in splits.items()}
    if arguments.dataset_converter is not None:
        with config.main_process_first(desc="converting the dataset"):
            for name, split in splits.items():
                splits[name] = convert_dataset(
                    split,
                    arguments.dataset_converter,
                    name=name,
                    invalid_rows=config.invalid_rows,
                    num_proc=config.dataset_num_proc,
                )
    return splits
