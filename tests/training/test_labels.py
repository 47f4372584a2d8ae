"""Labels from the rows to the losses: single responses, derived labels, and what refuses them."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Gt
from datasets import Dataset

from tests import helpers
from tests.training import support
from trl_dpo_ext import PreferencePairs, RankedResponses, register_loss
from trl_dpo_ext.data import DataError
from trl_dpo_ext.losses.loss_registry import LOSSES
from trl_dpo_ext.registry import RegistryError
from trl_dpo_ext.training import ConfigError, PreferenceTrainer

WORDS = ("the", "film", "was", "great", "slow", "awful")
THUMBS = [{"prompt": f"the film {i}", "completion": f" was {WORDS[3 + i % 3]}", "label": i % 3 == 0} for i in range(6)]
LISTS = [
    {"prompt": "the film", "completions": [" great", " slow", " awful"], "labels": [True, False, False]},
    {"prompt": "a film", "completions": [" slow"], "labels": [False]},
    {"prompt": "film", "completions": [" great", " fine"], "labels": [True, True]},
]
PAIRS = [{"prompt": f"the film {i}", "chosen": " great", "rejected": " slow"} for i in range(3)]
SCORED = [{"prompt": f"film {i}", "completions": [" great", " fine", " slow"], "scores": [3, 2, i]} for i in (0, 1)]


@pytest.fixture
def toy():
    """A loss that reads labels, with the gradient of a logistic loss on each response."""
    with LOSSES.temporary():

        @register_loss("toy_labels", needs=("labels",), single_responses=True)
        def toy_labels(responses: RankedResponses, *, beta: Annotated[float, Gt(0)] = 0.1) -> torch.Tensor:
            """A logistic loss on each labelled response."""
            labels = responses.required_labels()
            known = responses.mask & (labels != 0)
            losses = torch.nn.functional.softplus(-beta * labels * responses.log_ratios)
            return losses.masked_fill(~known, 0).sum(dim=1) / known.sum(dim=1).clamp(min=1)

        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return helpers.save_tiny_model(tmp_path_factory.mktemp("model"))


def trainer_of(model: str, folder: Any, rows: list[dict[str, Any]], **changes: Any) -> PreferenceTrainer:
    args = support.config(folder, **{"loss_type": ["toy_labels"], "per_device_train_batch_size": 8, **changes})
    return PreferenceTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows))


def seen(trainer: PreferenceTrainer) -> RankedResponses:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    return support.responses(trainer, batch)


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (THUMBS, {}, [[1], [-1], [-1], [1], [-1], [-1]]),
        (LISTS, {}, [[1, -1, -1], [-1, 0, 0], [1, 1, 0]]),
        (PAIRS, {}, [[1, -1]] * 3),
        (SCORED, {}, [[1, -1, -1]] * 2),
        (SCORED, {"desirable_above": 0.5}, [[1, 1, -1], [1, 1, 1]]),
        (PAIRS, {"loss_type": ["toy_labels", "dpo"], "derive_labels": True}, [[1, -1]] * 3),
    ],
    ids=["thumbs", "lists", "pairs", "scores", "scores above", "mixed, derived"],
)
def test_the_labels_that_a_loss_sees(rows, changes, expected, toy, model, tmp_path):
    labels = seen(trainer_of(model, tmp_path, rows, **changes)).labels
    assert labels.dtype == torch.int8
    assert labels.tolist() == expected


def test_scores_that_are_all_equal_can_be_labelled(toy, model, tmp_path):
    rows = [
        {"prompt": "film", "completion": " great", "score": 0.9},
        {"prompt": "a", "completion": " slow", "score": 0.1},
    ]
    trainer = trainer_of(model, tmp_path, rows, desirable_above=0.5)
    assert seen(trainer).labels.tolist() == [[1], [-1]]


def test_derived_labels_need_a_setting_beside_another_loss(toy, model, tmp_path):
    with pytest.raises(DataError, match=r"toy_labels reads labels, but no row has any.*derive_labels: true"):
        trainer_of(model, tmp_path, PAIRS, loss_type=["toy_labels", "dpo"])


def test_single_labelled_responses_train(toy, model, tmp_path):
    """The loss is that of the formula in float64, and a step changes the weights."""
    trainer = trainer_of(model, tmp_path, THUMBS, max_steps=1, learning_rate=1e-2, beta=None)
    responses = seen(trainer)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(1.5)  # away from the reference, where all log-ratios are 0
    policy = support.policy_outputs(
        trainer, trainer.data_collator([trainer.train_dataset[i] for i in range(len(THUMBS))])
    ).logps.sum(dim=2)
    values = [
        math.log1p(math.exp(-0.1 * (1 if row["label"] else -1) * (p - r)))
        for row, p, r in zip(THUMBS, policy[:, 0].tolist(), responses.ref_logps[:, 0].tolist(), strict=True)
    ]
    found, _ = trainer.objective(responses.replace(logps=policy), training=False)
    assert found.tolist() == pytest.approx(values, rel=1e-5)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert not before.equal(trainer.model.lm_head.weight)
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_labels_give_pairs(model, tmp_path):
    """Every desirable response against every undesirable one, for losses that read no labels."""
    rows = [{"prompt": "film", "completions": [" great film", " slow", " a fine film"], "labels": [True, False, True]}]
    responses = seen(trainer_of(model, tmp_path, rows, loss_type=["dpo"]))
    pairs, seen_lengths = responses.pairs(), responses.lengths[0].tolist()
    assert len(set(seen_lengths)) == 3
    assert len(pairs) == 2
    # Of unequal length, so that the pairs can be told apart.
    desirable, undesirable = [seen_lengths[0], seen_lengths[2]], [seen_lengths[1]] * 2
    assert (pairs.chosen_lengths.tolist(), pairs.rejected_lengths.tolist()) == (desirable, undesirable)


def test_other_losses_refuse_what_they_cannot_compare(toy, model, tmp_path):
    same = [{"prompt": "film", "completions": [" great", " fine"], "labels": [True, True]}]
    for rows, held in ((THUMBS, "single responses"), (same, "labels of one kind for each prompt")):
        message = rf"it holds {held} \(.*nothing that dpo could compare. Losses that read them: .*toy_labels"
        with pytest.raises(DataError, match=message):
            trainer_of(model, tmp_path, rows, loss_type=["dpo"])


def test_settings_that_would_do_nothing_are_refused(toy, tmp_path):
    for changes, message in (
        ({"loss_type": ["dpo"], "derive_labels": True}, "none of .* reads labels"),
        ({"loss_type": ["dpo"], "desirable_above": 0.5}, "has no effect without derived labels"),
        ({"derive_labels": False, "desirable_above": 0.5}, "has no effect without derived labels"),
        ({"desirable_above": math.inf}, "Expected a finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            support.config(tmp_path, **{"loss_type": ["toy_labels"], **changes})


def test_reference_scores_and_weights_reach_a_loss_that_reads_them(model, tmp_path):
    rows = [
        {"prompt": "film", "completions": [" great"], "scores": [2], "reference_scores": [1, 2, 3], "weight": 0.5},
        {"prompt": "a", "completions": [" slow", " fine"], "scores": [1, 0], "reference_scores": [4.5], "weight": 2},
    ]
    with LOSSES.temporary():

        @register_loss("toy_quantile", needs=("scores", "reference_scores", "weight"), single_responses=True)
        def toy_quantile(responses: RankedResponses) -> torch.Tensor:
            """Sum of log-probs."""
            return responses.logps.sum(dim=1)

        trainer = trainer_of(model, tmp_path, rows, loss_type=["toy_quantile"])
        found = seen(trainer)
        assert found.reference_scores.tolist() == [[1, 2, 3], [4.5, 0, 0]]
        assert found.reference_scores_mask.tolist() == [[True] * 3, [True, False, False]]
        assert found.prompt_weights.tolist() == [0.5, 2]
        without = [{name: row[name] for name in ("prompt", "completions", "scores")} for row in rows]
        with pytest.raises(DataError, match="has no column reference_scores"):
            trainer_of(model, tmp_path, without, loss_type=["toy_quantile"])
    plain = seen(trainer_of(model, tmp_path, rows[1:], loss_type=["dpo"]))
    assert plain.reference_scores is None
    assert plain.prompt_weights is None


def test_a_loss_of_pairs_cannot_read_labels():
    with LOSSES.temporary(), pytest.raises(RegistryError, match="inputs of RankedResponses only"):

        @register_loss("toy_pairs", needs=("labels",))
        def toy_pairs(pairs: PreferencePairs) -> torch.Tensor:
            return pairs.margins
