"""Losses with a kink: the gradient on the kink and the derivatives on both sides of it, against stated values."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from trl_dpo_ext import PreferencePairs, RankedResponses, get_loss, list_losses
from trl_dpo_ext.losses.kinks import clip, positive_part, smaller
from trl_dpo_ext.losses.loss_spec import LossSpec
from trl_dpo_ext.testing import loss_input, random_rankings
from trl_dpo_ext.training.modifiers import f_divergence_rewards

LOSSES = list_losses()
E80 = math.exp(80)
# chi_po at beta = 1: its argument for D_w = 1, D_l = 0 as float64 computes it, so that the limit is met exactly.
CHI_PO_LIMIT = (torch.tensor(1.0).double().exp() - 1 + 1).item()


def pair(chosen: float, rejected: float) -> RankedResponses:
    """One prompt with two responses of one token, under a reference that gives each the log-prob 0."""
    logps = torch.tensor([[chosen, rejected]], dtype=torch.float64)
    ranks = torch.tensor([[0, 1]])
    return RankedResponses(logps, 0 * logps, torch.ones_like(ranks), ranks, ranks >= 0)


def value(spec: LossSpec, responses: RankedResponses, **hyperparameters: float) -> Tensor:
    return spec.fn(loss_input(spec, responses), **spec.check(hyperparameters)).sum()


def gradient(spec: LossSpec, responses: RankedResponses, **hyperparameters: float) -> list[float]:
    logps = responses.logps.clone().requires_grad_()
    return torch.autograd.grad(value(spec, responses.replace(logps=logps), **hyperparameters), logps)[0].tolist()


def one_sided(spec: LossSpec, responses: RankedResponses, place: tuple[int, int], step: float, **given: float) -> float:
    """Derivative to the left (negative step) or to the right, by finite differences."""
    logps = responses.logps.clone()
    logps[place] += step
    there = value(spec, responses.replace(logps=logps), **given)
    return ((there - value(spec, responses, **given)) / step).item()


SIDES = {"chosen": 0, "rejected": 1}

# Loss, hyperparameters, log-probs of a pair on the kink; for each response the derivative to the left, the gradient on
# the kink, and the derivative to the right. Where policy and reference agree, sigmoid(0) = 1/2.
KINKS = {
    "minor_dpo": ({"beta": 0.1}, (0.0, 0.0), {"chosen": (-0.05, -0.05, -0.05), "rejected": (0.0, 0.05, 0.05)}),
    "dpop": (
        {"beta": 0.1, "lam": 50.0},
        (0.0, 0.0),
        {"chosen": (-0.05 * 51, -0.05, -0.05), "rejected": (0.05, 0.05, 0.05)},
    ),
    "balanced_po": (
        {"beta": 0.1, "alpha": 0.3},
        (0.0, 0.0),
        {"chosen": (-0.05, -0.025, 0.0), "rejected": (0.0, 0.0075, 0.015)},
    ),
    "hinge": ({"beta": 0.125}, (10.0, 2.0), {"chosen": (-0.125, 0.0, 0.0), "rejected": (0.0, 0.0, 0.125)}),
    "slic": ({"delta": 1.0, "lam": 0.1}, (-1.0, -2.0), {"chosen": (-1.1, -0.1, -0.1), "rejected": (0.0, 0.0, 1.0)}),
    "rrhf": ({"rank_weight": 100.0}, (-2.0, -2.0), {"chosen": (-101.0, -1.0, -1.0), "rejected": (0.0, 0.0, 100.0)}),
    "chi_po": (
        {"beta": 1.0, "r_max": CHI_PO_LIMIT / 2},
        (1.0, 0.0),
        {
            "chosen": (*2 * (-(math.e + 1) / (1 + math.exp(math.e)),), 0.0),
            "rejected": (0.0, *2 * (2 / (1 + math.exp(math.e)),)),
        },
    ),
    "alphapo": (
        {"alpha": 1.0, "beta": 1e-34, "gamma": 0.0},
        (0.0, -80.0),
        {
            "chosen": 3 * (-1e-34 / (1 + math.exp(1e-34 * E80)),),
            "rejected": (0.0, *2 * (1e-34 * E80 / (1 + math.exp(1e-34 * E80)),)),
        },
    ),
}
CASES = [(name, side) for name in KINKS for side in SIDES]


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_gradient_on_the_kink_and_on_both_sides(name, side):
    hyperparameters, logps, expected = KINKS[name]
    spec, responses, place = get_loss(name), pair(*logps), (0, SIDES[side])
    left, there, right = expected[side]
    assert gradient(spec, responses, **hyperparameters)[0][SIDES[side]] == pytest.approx(there, rel=1e-9, abs=1e-30)
    for step, slope in ((-1e-6, left), (1e-6, right)):
        got = one_sided(spec, responses, place, step, **hyperparameters)
        assert got == pytest.approx(slope, rel=1e-4, abs=1e-8)


# The order of equal rewards decides the weights of this loss, so its value jumps where rewards are equal.
JUMPS = {"lipo_lambda"}


@pytest.mark.parametrize("spec", [s for s in LOSSES if s.name not in JUMPS], ids=lambda spec: spec.name)
def test_a_loss_with_a_kink_at_the_first_step_is_listed(spec):
    responses = random_rankings(seed=40, prompts=2, responses=3)
    responses = responses.replace(logps=responses.ref_logps, token_logps=responses.ref_token_logps)
    # Curvature and rounding, far below the slopes of about 0.05 that a kink adds or removes.
    noise = 1e-6 * max(1.0, value(spec, responses).abs().item())
    found = False
    for place in itertools.product(range(2), range(3)):
        left, right = (one_sided(spec, responses, place, step) for step in (-1e-6, 1e-6))
        found |= abs(left - right) > 1e-2 * max(abs(left), abs(right)) + noise
    listed = spec.name in KINKS and KINKS[spec.name][1] == (0.0, 0.0)
    assert found == listed, (
        f"{spec.name} has a kink where policy and reference agree, the first step of every run. State its gradient "
        "there with a function of trl_dpo_ext/losses/kinks.py, and list it in KINKS."
        if found
        else f"{spec.name} is listed in KINKS, but has no kink at the first step."
    )


def test_aot_unpaired_gives_equal_gradients_where_all_log_ratios_are_equal():
    """Every pair is matched with some pair; with all log-ratios 0 the match makes no difference."""
    responses = random_rankings(seed=41, prompts=5, responses=2)
    responses = responses.replace(logps=responses.ref_logps)
    for row, ranks in zip(
        gradient(get_loss("aot_unpaired"), responses, beta=0.1), responses.ranks.tolist(), strict=True
    ):
        assert [row[ranks.index(0)], row[ranks.index(1)]] == pytest.approx([-0.05, 0.05])


def test_aot_matches_equal_values_in_the_order_of_the_batch():
    chosen, rejected = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([5.0, 3.0, 4.0])
    zero, one = torch.zeros(3), torch.ones(3)
    pairs = PreferencePairs(chosen, rejected, zero, zero, one, one)
    # Sorted: 0, 1, 1 against 3, 4, 5; of the two equal ones, the first in the batch gets 4.
    expected = [math.log1p(math.exp(-u)) for u in (1.0 - 4.0, 1.0 - 5.0, 0.0 - 3.0)]
    assert get_loss("aot_unpaired").fn(pairs, beta=1.0).tolist() == pytest.approx(expected)


def test_orpo_at_the_largest_probability():
    """One rounding step below probability 1 the odds are still finite, and their slope is that of the formula."""
    eps = torch.finfo(torch.float64).eps
    spec = get_loss("orpo")
    odds_slope = 1 + math.exp(-eps) / -math.expm1(-eps)  # of log(p / (1 - p)) in m, at m = -eps
    log_odds = -eps - math.log(-math.expm1(-eps)) - (-1 - math.log(1 - math.exp(-1)))
    slope = -1 - odds_slope / (1 + math.exp(log_odds))
    assert gradient(spec, pair(-eps, -1.0), lam=1.0)[0][0] == pytest.approx(slope, rel=1e-9)
    assert gradient(spec, pair(0.0, -1.0), lam=1.0)[0][0] == -1, "beyond it only the likelihood term has a gradient"


@pytest.mark.parametrize(("log_ratio", "slope"), [(79.0, math.exp(79)), (80.0, E80), (80.001, 0.0)])
def test_the_alpha_divergence_at_its_limit(log_ratio, slope):
    x = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(f_divergence_rewards(x, "alpha_divergence", 2.0), x)
    assert got.item() == pytest.approx(slope)


def test_minor_dpo_counts_a_pair_on_the_kink_as_not_clipped():
    """As in the gradient, which is that of DPO there."""
    spec = get_loss("minor_dpo")
    data = loss_input(spec, pair(0.0, 0.0))
    assert spec.metrics(data, **spec.check({}))["clipped"].tolist() == [0.0]


# --- the functions -------------------------------------------------------------------------------------------------

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])


def with_slopes(fn, values: list[float], dtype: torch.dtype) -> tuple[list[float], list[float]]:
    x = torch.tensor(values, dtype=dtype, requires_grad=True)
    y = fn(x)
    assert y.dtype == dtype
    return y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()


@DTYPES
@pytest.mark.parametrize("slope", [0, 1])
def test_positive_part(dtype, slope):
    got = with_slopes(lambda x: positive_part(x, slope_at_zero=slope), [-2.0, -0.0, 0.0, 3.0], dtype)
    assert got == ([0.0, 0.0, 0.0, 3.0], [0.0, slope, slope, 1.0])


@DTYPES
def test_clip(dtype):
    values = [-3.0, -2.0, 0.5, 4.0, 5.0]
    assert with_slopes(lambda x: clip(x, low=-2, high=4), values, dtype) == (
        [-2.0, -2.0, 0.5, 4.0, 4.0],
        [0, 1, 1, 1, 0],
    )
    assert with_slopes(lambda x: clip(x, low=-2), values, dtype) == ([-2.0, -2.0, 0.5, 4.0, 5.0], [0, 1, 1, 1, 1])
    assert with_slopes(lambda x: clip(x, high=4), values, dtype) == ([-3.0, -2.0, 0.5, 4.0, 4.0], [1, 1, 1, 1, 0])
    assert with_slopes(clip, values, dtype) == (values, 5 * [1])


@DTYPES
def test_smaller(dtype):
    got = with_slopes(lambda x: smaller(x, torch.tensor([1.0, 2.0, 3.0], dtype=dtype)), [2.0, 2.0, 2.0], dtype)
    assert got == ([1.0, 2.0, 2.0], [0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: positive_part(x, slope_at_zero=0),
        lambda x: positive_part(x, slope_at_zero=1),
        lambda x: clip(x, low=-1, high=1),
        lambda x: smaller(x, torch.zeros(1)),
        lambda x: smaller(torch.zeros(1), x),
    ],
)
def test_nan_is_not_hidden(fn):
    assert fn(torch.tensor([math.nan])).isnan().all()
