"""The thin trainers and a custom loss train from a model folder and rankings with default settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from torch import Tensor

from tests import helpers
from tests.training import support
from trl_dpo_ext import PreferencePairs, register_loss
from trl_dpo_ext.data import DataError
from trl_dpo_ext.testing import temporary_losses
from trl_dpo_ext.training import (
    MinorDPOTrainer,
    PlackettLuceTrainer,
    PreferenceConfig,
    PreferenceTrainer,
    ReferenceFreeTrainer,
)


def run(trainer: Any, model: str, folder: Any, **settings: Any) -> tuple[Any, dict[str, float]]:
    args = PreferenceConfig(**helpers.training_args(folder, max_steps=2, **settings))
    made = trainer(model, args=args, train_dataset=helpers.ranked_dataset(4), peft_config=support.lora())
    return made, support.train(made).logs[-1]


@pytest.mark.parametrize(
    ("trainer", "loss", "metrics"),
    [
        (PreferenceTrainer, "dpo", {"rewards/margins", "rewards/accuracies"}),
        (ReferenceFreeTrainer, "simpo", {"rewards/margins", "rewards/accuracies"}),
        (MinorDPOTrainer, "minor_dpo", {"minor_dpo/clipped", "rewards/margins"}),
        (PlackettLuceTrainer, "plackett_luce", {"rewards/top1_accuracies", "rewards/kendall_tau"}),
    ],
)
def test_a_default_run(trainer, loss, metrics, tiny_model_dir, tmp_path):
    made, log = run(trainer, tiny_model_dir, tmp_path)
    assert [term.spec.name for term in made.objective.terms] == [loss]
    assert metrics <= log.keys()
    moved = [weight for name, weight in made.model.named_parameters() if "lora_B" in name]
    assert all(weight.abs().max() > 0 for weight in moved)
    assert "trl-dpo-ext" in made.model.model_tags


def test_the_default_layout_trains_like_padded_rows(tiny_model_dir, tmp_path):
    made, _ = run(PlackettLuceTrainer, tiny_model_dir, tmp_path)
    other, _ = run(PlackettLuceTrainer, tiny_model_dir, tmp_path, **support.PADDED)
    assert made.data_collator.layout != other.data_collator.layout
    for ours, theirs in zip(made.state.log_history[:2], other.state.log_history[:2], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@temporary_losses()
def test_a_loss_of_ones_own(tiny_model_dir, tmp_path):
    @register_loss("test_trainers_hinge")
    def hinge(pairs: PreferencePairs, *, beta: float = 0.1, margin: float = 1.0) -> Tensor:
        return F.relu(margin - beta * pairs.margins)

    made, log = run(
        PreferenceTrainer,
        tiny_model_dir,
        tmp_path,
        loss_type="test_trainers_hinge",
        beta=0.5,
        loss_kwargs={"test_trainers_hinge": {"margin": 2.0}},
    )
    assert made.state.log_history[0]["loss"] == pytest.approx(2.0)  # policy and reference are the same
    assert log["loss"] < 2.0
    assert torch.isfinite(torch.tensor(log["rewards/margins"]))


# Datasets as they come


def test_a_streamed_and_a_tokenized_dataset_train_like_one_in_memory(tiny_model_dir, tmp_path):
    def loss(data: Any) -> tuple[float, Any]:
        one = support.trainer(
            tiny_model_dir, tmp_path, data, loss_type="simpo", max_steps=1, per_device_train_batch_size=4
        )
        (value,) = support.train(one).losses
        return value, one

    rows = helpers.ranked_rows(4)
    expected, in_memory = loss(Dataset.from_list(rows))
    assert loss(IterableDataset.from_generator(lambda: iter(rows)))[0] == pytest.approx(expected, rel=1e-5)
    assert loss(in_memory.train_dataset)[0] == pytest.approx(expected, rel=1e-5)


def test_evaluation_datasets(tiny_model_dir, tmp_path):
    data = {"good": helpers.ranked_dataset(3, seed=1), "other": helpers.ranked_dataset(4, seed=2)}
    one = support.trainer(
        tiny_model_dir, tmp_path, helpers.ranked_dataset(2), eval_dataset=data, loss_type="simpo", max_steps=1
    )
    logged = one.evaluate()
    for name, rows in data.items():
        value = logged[f"eval_{name}_loss"]
        assert value > 0
        # A dataset passed to evaluate() is prepared in the same way.
        assert one.evaluate(rows)["eval_loss"] == pytest.approx(value, rel=1e-6)
    with pytest.raises(DataError, match="eval dataset, row 0, column 'ranks'"):
        one.evaluate(Dataset.from_list([{"prompt": "a", "completions": [" b", " c"], "ranks": [0, 0]}]))


def test_predict_gives_the_evaluation_metrics(tiny_model_dir, tmp_path):
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.ranked_dataset(4))
    metrics = trainer.predict(trainer.train_dataset).metrics
    assert metrics["test_loss"] == pytest.approx(trainer.evaluate(trainer.train_dataset)["eval_loss"])
