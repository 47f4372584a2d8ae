"""A registered loss that doesn't return one value per pair or prompt: a sentence, at the first batch."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from tests import helpers
from tests.training import support
from trl_dpo_ext import PreferencePairs, RankedResponses, get_loss, register_loss
from trl_dpo_ext.testing import random_rankings, temporary_losses
from trl_dpo_ext.training import ConfigError
from trl_dpo_ext.training.objective import Objective, Term


def mean(pairs: PreferencePairs):
    return -F.logsigmoid(pairs.margins).mean()


def column(pairs: PreferencePairs):
    return -F.logsigmoid(pairs.margins).unsqueeze(1)


def per_prompt(pairs: PreferencePairs):
    return -F.logsigmoid(pairs.margins)[:3]


def number(pairs: PreferencePairs):
    return -F.logsigmoid(pairs.margins).mean().item()


def per_response(responses: RankedResponses):
    return -F.logsigmoid(responses.log_ratios)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (
            mean,
            "returned shape () for 18 pairs. Expected shape (18,), one value per pair. Return the values themselves; "
            "the trainer takes the mean.",
        ),
        (column, "returned shape (18, 1) for 18 pairs. Expected shape (18,), one value per pair."),
        (per_prompt, "returned shape (3,) for 18 pairs. Expected shape (18,), one value per pair."),
        (number, "returned a float for 18 pairs. Expected shape (18,), one value per pair."),
        (per_response, "returned shape (3, 4) for 3 prompts. Expected shape (3,), one value per prompt."),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
@temporary_losses()
def test_a_wrong_shape_is_named(loss, sentence):
    register_loss("wrong_shape")(loss)
    objective = Objective([Term(get_loss("wrong_shape"), {}, 1.0)])
    with pytest.raises(
        ConfigError, match=rf"^The loss 'wrong_shape' \(.*test_loss_shape.py:\d+\) {re.escape(sentence)}$"
    ):
        objective(random_rankings(prompts=3, responses=4), training=True)


@temporary_losses()
def test_a_batch_without_pairs_has_the_right_shape():
    @register_loss("fine")
    def fine(pairs: PreferencePairs):
        return -F.logsigmoid(pairs.margins)

    responses = random_rankings(prompts=2, responses=3)
    tied = responses.replace(ranks=torch.zeros_like(responses.ranks))
    values, _ = Objective([Term(get_loss("fine"), {}, 1.0)])(tied, training=True)
    assert values.tolist() == [0, 0]


@temporary_losses()
def test_training_stops_at_the_first_step(tiny_model_dir, tmp_path):
    register_loss("wrong_shape")(mean)
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.pair_dataset(4), loss_type="wrong_shape")
    with pytest.raises(ConfigError, match=r"returned shape \(\) for 2 pairs"):
        support.train(trainer)
    assert trainer.state.global_step == 0
