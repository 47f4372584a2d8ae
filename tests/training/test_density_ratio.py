"""`match_prompts`: the weights of `bco_unpaired` against a plain forward, and the regression against its conditions."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests import helpers
from tests.training import support
from trl_dpo_ext.data import DataError
from trl_dpo_ext.training import ConfigError
from trl_dpo_ext.training.density_ratio import fit


def rows(count: int = 12, seed: int = 0) -> Dataset:
    """Thumbs up for long prompts mostly, thumbs down for short ones."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        liked = number % 2 == 0
        words = draw.choices(helpers.WORDS, k=draw.randint(5, 9) if liked else draw.randint(2, 6))
        found.append({"prompt": f"{' '.join(words)} {number}", "completion": " was slow", "label": liked})
    return Dataset.from_list(found)


def trainer(model: Any, folder: Any, data: Dataset, **changes: Any) -> Any:
    settings = {"loss_type": ["bco_unpaired"], "match_prompts": True, **changes}
    return support.trainer(model, folder, data, **settings)


def plain_means(model_dir: str, prompts: list[list[int]]) -> np.ndarray:
    """One prompt at a time, without padding, through the plain model."""
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    with torch.no_grad():
        hidden = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0].double() for ids in prompts]
    return np.stack([states.mean(dim=0).numpy() for states in hidden])


@pytest.mark.parametrize("changes", [{}, {"peft_config": support.lora()}], ids=["full", "lora"])
def test_the_weights_are_the_regressions_on_plain_means(changes, tiny_model_dir, tmp_path):
    one = trainer(tiny_model_dir, tmp_path, rows(), eval_dataset=rows(4, seed=1), **changes)
    data = one.train_dataset
    saved = json.loads((tmp_path / "density_ratio.json").read_text())
    for dataset in (data, one.eval_dataset):
        means = plain_means(tiny_model_dir, dataset["prompt_ids"])
        logits = (means - saved["mean"]) / saved["scale"] @ np.array(saved["weight"]) + saved["bias"]
        np.testing.assert_allclose(dataset["weight"], np.exp(logits).clip(0.5, 10), rtol=1e-4)
    weights = np.array(data["weight"])
    liked = np.array([labels[0] for labels in data["labels"]])
    assert weights[liked].mean() > 2 > 1 > weights[~liked].mean()
    run = support.train(one)
    assert all(np.isfinite(run.losses))


def test_the_regression_is_at_its_minimum():
    """The gradient of the balanced penalized loss, in float64 by hand, is 0; the odds are the densities' ratio."""
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(1, 1, (30, 3)), generator.normal(0, 2, (90, 3))])
    y = np.arange(120) < 30
    found = fit(x, y)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    p = 1 / (1 + np.exp(-(z @ found.weight + found.bias)))
    error = np.where(y, 120 / 60, 120 / 180) * (p - y)
    np.testing.assert_allclose(z.T @ error + found.weight, 0, atol=1e-5)
    assert error.sum() == pytest.approx(0, abs=1e-5)


def test_the_odds_are_the_ratio_of_the_densities():
    """Two normal densities of the same spread: the log-ratio is linear, and the classes' sizes don't matter."""
    generator = np.random.default_rng(1)
    x = np.concatenate([generator.normal(0.5, 1, (6000, 1)), generator.normal(-0.5, 1, (2000, 1))])
    found = fit(x, np.arange(8000) < 6000)
    points = np.array([[-1.0], [0.0], [1.0]])
    np.testing.assert_allclose(found.logits(points), points[:, 0], atol=0.1)
    np.testing.assert_allclose(found.ratios(np.array([[-9.0], [9.0]])), [0.5, 10.0])


def test_the_same_embeddings_everywhere_weigh_one():
    found = fit(np.ones((6, 2)), np.arange(6) < 2)
    np.testing.assert_allclose(found.ratios(np.ones((3, 2))), 1)


def test_a_column_of_weights_is_kept(tiny_model_dir, tmp_path):
    own = [3.0 if number == 1 else None for number in range(12)]
    one = trainer(tiny_model_dir, tmp_path, rows().add_column("weight", own))
    without = trainer(tiny_model_dir, tmp_path / "without", rows())
    expected = list(without.train_dataset["weight"])
    expected[1] = 3.0
    np.testing.assert_allclose(one.train_dataset["weight"], expected)


def test_the_setting_changes_the_loss(tiny_model_dir, tmp_path):
    losses = [
        support.train(trainer(tiny_model_dir, tmp_path / str(on), rows(), match_prompts=on)).losses
        for on in (True, False)
    ]
    assert abs(losses[0][1] - losses[1][1]) > 0.1  # the first step has a desirable response only


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"loss_type": ["kto"]}, ConfigError, r"none of \['kto'\] reads weights"),
        ({"data": rows().to_iterable_dataset()}, ConfigError, "the train dataset is streamed"),
        ({"data": rows().filter(lambda row: row["label"])}, DataError, "all 6 labelled prompts have the same kind"),
    ],
    ids=["another loss", "a stream", "one kind"],
)
def test_what_cannot_be_matched_is_said(changes, error, said, tiny_model_dir, tmp_path):
    data = changes.pop("data", rows())
    with pytest.raises(error, match=said):
        trainer(tiny_model_dir, tmp_path, data, **changes)
