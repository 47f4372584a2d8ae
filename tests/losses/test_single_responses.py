"""Losses on labels and quantiles where something is unknown: no label, no sample, equal scores. Values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trl_dpo_ext.losses import get_loss
from trl_dpo_ext.types import RankedResponses

# D of two prompts with two responses, and of the mismatched completion of each.
RATIOS = [[0.5, -0.25], [-1.0, 2.0]]
MISMATCHED = [0.4, 0.8]


def responses(**more: Any) -> RankedResponses:
    logps = torch.tensor(RATIOS, dtype=torch.float64)
    ones = torch.ones(2, 2, dtype=torch.long)
    given = {
        "ref_mismatched_logps": torch.zeros(2, dtype=torch.float64),
        "mismatched_logps": torch.tensor(MISMATCHED, dtype=torch.float64),
        **more,
    }
    return RankedResponses(logps, torch.zeros_like(logps), ones, ones - 1, ones > 0, **given)


def value(name: str, data: RankedResponses, **hyperparameters: float) -> list[float]:
    spec = get_loss(name)
    result: list[float] = spec.fn(data, **spec.check(hyperparameters)).tolist()
    return result


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def labels(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int8)


def test_a_response_without_a_label_counts_for_nothing():
    data = responses(labels=labels([1, 0], [-1, 0]), running_mean=torch.tensor(0.1, dtype=torch.float64))
    z = (0.4 + 0.8) / 2
    assert value("kto", data, beta=0.5) == pytest.approx([1 - sigmoid(0.5 * (0.5 - z)), 1 - sigmoid(0.5 * (z + 1.0))])
    assert value("apo_zero_unpaired", data, beta=0.5) == pytest.approx([1 - sigmoid(0.25), sigmoid(-0.5)])
    expected = [-math.log(sigmoid(0.25 - 0.1)), -math.log(sigmoid(0.1 + 0.5))]
    assert value("bco_unpaired", data, beta=0.5) == pytest.approx(expected)


def test_a_prompt_without_labels_has_no_part_in_the_reference_point():
    data = responses(labels=labels([1, -1], [0, 0]))
    both = [1 - sigmoid(0.5 * (0.5 - 0.4)), 1 - sigmoid(0.5 * (0.4 + 0.25))]
    assert value("kto", data, beta=0.5) == pytest.approx([sum(both) / 2, 0])


def test_without_any_label_the_loss_is_zero():
    data = responses(labels=labels([0, 0], [0, 0]), running_mean=torch.tensor(0.0, dtype=torch.float64))
    for name in ("kto", "apo_zero_unpaired", "bco_unpaired"):
        assert value(name, data) == [0, 0], name
    assert get_loss("kto").metrics(data, beta=0.1, lambda_d=1.0, lambda_u=1.0)["kl"].tolist() == [0, 0]


def test_the_running_mean_is_fed_with_the_rewards_of_labelled_responses():
    statistic = get_loss("bco_unpaired").statistic
    assert statistic is not None
    assert statistic(responses(labels=labels([1, 0], [-1, 1])), beta=0.5).tolist() == pytest.approx([0.25, 0.25])
    assert statistic(responses(labels=labels([0, 0], [0, -1])), beta=0.5).tolist() == pytest.approx([1.0])


def squared(q: float, beta: float, ratio: float) -> float:
    z = beta * (math.exp(1 / beta) - 1)
    return (q - beta * math.log(z) - beta * ratio) ** 2


def test_equal_scores_count_as_at_most_the_response_s():
    scores = torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    group = [[1.0, 1.0], [0.0, 1.0]]  # the share of the other responses with at most this score
    expected = [
        sum(squared(q, 0.7, d) for q, d in zip(*row, strict=True)) / 2 for row in zip(group, RATIOS, strict=True)
    ]
    assert value("qrpo_group", responses(scores=scores), beta=0.7) == pytest.approx(expected)
    samples = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    shares = [[2 / 3, 2 / 3], [0.0, 1.0]]
    expected = [
        sum(squared(q, 0.7, d) for q, d in zip(*row, strict=True)) / 2 for row in zip(shares, RATIOS, strict=True)
    ]
    data = responses(scores=scores, reference_scores=samples, reference_scores_mask=mask)
    assert value("qrpo", data, beta=0.7) == pytest.approx(expected)


def test_without_samples_the_quantile_is_zero():
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    data = responses(scores=scores, reference_scores=torch.zeros(2, 1), reference_scores_mask=nothing)
    expected = [sum(squared(0, 0.7, d) for d in row) / 2 for row in RATIOS]
    assert value("qrpo", data, beta=0.7) == pytest.approx(expected)
