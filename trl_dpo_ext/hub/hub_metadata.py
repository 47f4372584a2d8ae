"""What the Hub reads of a run beside its card's text: datasets, the base model's licence, evaluation results."""

from __future__ import annotations

import logging
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, HfApi, eval_result_entries_to_yaml

from ..data import get_converter
from ..registry import UnknownNameError
from ..strict_yaml import dump_yaml
from .pushed_files import hub_id
from .run_folder import Run

logger = logging.getLogger(__name__)

EVAL_RESULTS = ".eval_results/trl-dpo-ext.yaml"
_LICENSE_KEYS = ("license", "license_name", "license_link")


def datasets_of(run: Run) -> list[str]:
    """Return the Hub ids of a run's data: the recorded one, or the one that its converter was written for."""
    names = [run.recipe.get("dataset_name")]
    mixture = run.recipe.get("dataset_mixture")
    if isinstance(mixture, dict):
        names += [part.get("name") for part in mixture.get("datasets") or [] if isinstance(part, dict)]
    found = [str(name) for name in names if name and hub_id(str(name))]
    if not found and (converter := run.recipe.get("dataset_converter")):
        try:
            found = [get_converter(converter).dataset]
        except UnknownNameError:  # of a module that isn't imported here
            return []
    return [name for name in dict.fromkeys(found) if name]


def license_of(api: HfApi, model: str, revision: str | None) -> dict[str, str]:
    """Return the licence that the Hub has for a model, as a card's metadata; empty where it can't be read."""
    try:
        card: Any = api.model_info(model, revision=revision).card_data or {}
    except Exception as error:  # an adapter without a licence in its card is complete; the push must not fail for it
        logger.info(f"The licence of {model} can't be read from the Hub ({type(error).__name__}): the card has none.")
        return {}
    return {key: str(value) for key in _LICENSE_KEYS if (value := card.get(key))}


def model_index(run: Run) -> list[EvalResult] | None:
    """Return the results for the card's `model-index`; None without an evaluation."""
    dataset = str(run.recipe.get("dataset_name", "unknown"))
    where: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "Text generation",
        "dataset_type": dataset if hub_id(dataset) else "local",
        "dataset_name": dataset.rstrip("/").split("/")[-1],
        "dataset_config": run.recipe.get("dataset_config"),
        "dataset_split": run.recipe.get("dataset_test_split", "test"),
    }
    found = [
        EvalResult(**where, metric_type=kind, metric_name=name, metric_value=value)
        for kind, name, value in _results(run)
    ]
    return found or None


def eval_results(run: Run) -> str | None:
    """Return the text of `.eval_results/trl-dpo-ext.yaml`; None without an evaluation or with data from elsewhere.

    Its format is the Hub's newer one (huggingface.co/docs/hub/eval-results), with one entry for each result.
    """
    dataset = str(run.recipe.get("dataset_name", ""))
    if not dataset or not hub_id(dataset):
        return None
    split = run.recipe.get("dataset_test_split", "test")
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=str(run.recipe.get("dataset_config") or "default"),
            value=value,
            notes=f"{name}, on the prompts of the split {split}",
        )
        for _, name, value in _results(run)
    ]
    return dump_yaml(eval_result_entries_to_yaml(entries)) if entries else None


def _results(run: Run) -> list[tuple[str, str, float]]:
    """Return kind, name and value of each result of the evaluation of samples."""
    evaluation = run.result.get("evaluation")
    if not evaluation:
        return []
    reward, after = run.recipe.get("reward", "reward"), evaluation["after"]
    found = [
        ("reward", f"mean {reward} reward of samples", after["reward"]["mean"]),
        ("reward_before", f"mean {reward} reward of samples before training", evaluation["before"]["reward"]["mean"]),
    ]
    if after.get("kl"):
        found.append(("kl", "sequence KL to the reference, nats", after["kl"]["mean"]))
    return [(kind, name, round(value, 4)) for kind, name, value in found]
