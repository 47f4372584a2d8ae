"""Every loss against its transcription, at the defaults and at other hyperparameters."""

import contextlib
import itertools
from typing import Any

import pytest
import torch

from tests.losses import transcriptions
from tests.losses.transcriptions import Response
from trl_dpo_ext import PreferencePairs, RankedResponses, get_loss, list_losses
from trl_dpo_ext.losses import Hyperparameter, HyperparameterError, LossSpec
from trl_dpo_ext.testing import loss_input, random_rankings

# Values besides the default, chosen so that no term vanishes and each branch is taken.
OTHERS = {
    "alpha": [0.0, 0.8],
    "beta": [0.4, 1.7],
    "beta_r": [0.7],
    "delta": [0.0, 2.5],
    "gamma": [0.0, 1.3],
    "gamma_beta_ratio": [0.0, 1.1],
    "label_smoothing": [0.05, 0.3],
    "lambda_d": [0.4, 1.7],
    "lambda_u": [0.4, 2.3],
    "lam": [0.6],
    "nu": [1.4, 5.0],
    "r_max": [0.3],
    "rank_weight": [0.0, 3.0],
    "sft_weight": [0.0, 1.5],
    "tau": [0.6, 2.0],
    "top_k": [1, 2, 3],
}
OF_ONE_LOSS = {("alphapo", "alpha"): [0.0, -0.7, 1.2], ("dpop", "lam"): [0.0, 3.0], ("slic", "lam"): [0.0, 2.0]}


def other_values(spec: LossSpec, hyperparameter: Hyperparameter) -> list[Any]:
    """Values besides the default, within the bounds; for a name that isn't listed, around its default."""
    name, default = hyperparameter.name, hyperparameter.default
    around = [not default] if hyperparameter.type is bool else [default] if default is None else [2 * default + 1]
    if hyperparameter.type is float:
        around = [0.0, 0.6 * default + 0.1, 2.5 * default + 0.3]
    allowed = []
    for value in OF_ONE_LOSS.get((spec.name, name), OTHERS.get(name, around)):
        with contextlib.suppress(HyperparameterError):
            allowed.append(hyperparameter.check(value, spec.name))
    assert allowed, f"List values of {spec.name}'s {name!r} in OTHERS: none of {around} is within its bounds."
    return allowed


def settings():
    for spec in list_losses():
        yield pytest.param(spec, {}, id=spec.name)
        for name, hyperparameter in spec.hyperparameters.items():
            for value in other_values(spec, hyperparameter):
                yield pytest.param(spec, {name: value}, id=f"{spec.name}-{name}={value}")


FIELDS = ("logps", "ref_logps", "lengths", "ranks", "scores", "labels")


def with_ties(responses: RankedResponses) -> RankedResponses:
    """The first two prompts with ties: for the best, and further down."""
    ranks = responses.ranks.clone()
    ranks[0], ranks[1] = ranks[0].clamp(min=1), ranks[1].clamp(max=2)
    return responses.replace(ranks=ranks)


def groups_of(responses: RankedResponses) -> list[list[Response]]:
    return [
        [
            Response(
                *(getattr(responses, n)[b, k].item() for n in FIELDS),
                mismatched=responses.mismatched_log_ratios[b].item(),
                samples=tuple(responses.reference_scores[b][responses.reference_scores_mask[b]].tolist()),
                weight=responses.prompt_weights[b].item(),
            )
            for k in range(responses.mask.shape[1])
            if responses.mask[b, k]
        ]
        for b in range(len(responses))
    ]


def pairs_of(groups: list[list[Response]], ties: bool) -> list[tuple[Response, Response]]:
    return [
        (a, b)
        for group in groups
        for (i, a), (j, b) in itertools.product(enumerate(group), repeat=2)
        if a.rank < b.rank or (ties and a.rank == b.rank and i < j)
    ]


def expected(spec, responses: RankedResponses, data, hyperparameters) -> list[float]:
    groups = groups_of(responses)
    if spec.name in transcriptions.LISTWISE:
        return [transcriptions.LISTWISE[spec.name](group, **hyperparameters) for group in groups]
    if spec.listwise:
        if spec.statistic:
            hyperparameters = {**hyperparameters, "running_mean": data.running_mean.item()}
        return transcriptions.BATCHWISE[spec.name](groups, **hyperparameters)
    pairs = pairs_of(groups, "ties" in spec.needs)
    if spec.name in transcriptions.BATCHWISE:
        if spec.statistic:
            hyperparameters = {**hyperparameters, "running_mean": data.running_mean.item()}
        return transcriptions.BATCHWISE[spec.name](pairs, **hyperparameters)
    return [transcriptions.PAIRWISE[spec.name](w, z, **hyperparameters) for w, z in pairs]


@pytest.mark.parametrize(("spec", "hyperparameters"), settings())
def test_value(spec, hyperparameters):
    responses = random_rankings(seed=10, prompts=4, responses=5, ragged=True)
    if spec.couples_batch and not spec.listwise:
        # Each response in one pair only, because AOT may match equal values in any order.
        responses = random_rankings(seed=10, prompts=6, responses=2)
    else:
        responses = with_ties(responses)
    data = loss_input(spec, responses)
    if spec.statistic:
        data = data.replace(
            batch_mean=spec.statistic(data, **spec.check(hyperparameters)).mean(),
            running_mean=torch.tensor(0.3, dtype=torch.float64),
        )
    value = spec.fn(data, **spec.check(hyperparameters))
    torch.testing.assert_close(
        value,
        torch.tensor(expected(spec, responses, data, hyperparameters), dtype=torch.float64),
        rtol=1e-10,
        atol=1e-14,
    )


def test_beta_dpo_keeps_beta_above_its_floor():
    logps = torch.tensor([-50.0, -1.0], dtype=torch.float64)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    pairs = PreferencePairs(logps[:1], logps[1:], zero, zero, one, one, batch_mean=logps[0] + 1, running_mean=zero[0])
    value = get_loss("beta_dpo").fn(pairs, beta=0.1, alpha=0.6)
    w, z = Response(-50.0, 0.0, 1), Response(-1.0, 0.0, 1)
    assert value.item() == pytest.approx(transcriptions.nls(1e-3 * -49), rel=1e-10)
    assert value.item() == pytest.approx(transcriptions.beta_dpo([(w, z)], 0.1, 0.6, 0.0)[0], rel=1e-10)


@pytest.mark.parametrize("name", ["bco", "beta_dpo"])
def test_statistics(name):
    spec = get_loss(name)
    data = loss_input(spec, random_rankings(seed=11))
    chosen, rejected = data.chosen_log_ratios, data.rejected_log_ratios
    expected_values = {"bco": 0.7 * (chosen + rejected) / 2, "beta_dpo": chosen - rejected}[name]
    hyperparameters = spec.check({"beta": 0.7})
    torch.testing.assert_close(spec.statistic(data, **hyperparameters), expected_values)
    assert spec.momentum == {"bco": None, "beta_dpo": 0.9}[name]
