"""Plackett-Luce against the exact enumeration of orders, and what ties, partial rankings and places do."""

import itertools
import math

import pytest
import torch

from tests.losses.transcriptions import exact_order_probability, orders_allowed
from trl_dpo_ext import RankedResponses, get_loss
from trl_dpo_ext.losses.families.listwise import plackett_luce_nll
from trl_dpo_ext.testing import random_rankings


def nll(rewards: list[float], ranks: list[int], **options) -> float:
    mask = torch.ones(1, len(ranks), dtype=torch.bool)
    return plackett_luce_nll(
        torch.tensor([rewards], dtype=torch.float64), torch.tensor([ranks]), mask, **options
    ).item()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_without_ties_it_is_the_probability_of_the_order(count):
    rewards = random_rankings(seed=count, prompts=1, responses=6).logps[0, :count].tolist()
    for order in itertools.islice(itertools.permutations(range(count)), 0, None, max(1, math.factorial(count) // 24)):
        ranks = [order.index(i) for i in range(count)]
        assert nll(rewards, ranks) == pytest.approx(-math.log(exact_order_probability(rewards, [order])), rel=1e-10)


def test_the_probabilities_of_all_orders_add_up_to_one():
    rewards = [0.3, -1.2, 2.0, 0.7]
    total = sum(math.exp(-nll(rewards, list(ranks))) for ranks in itertools.permutations(range(4)))
    assert total == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("ranks", [[0, 0, 1], [0, 1, 1], [0, 1, 1, 2], [1, 0, 0, 1], [0, 0, 0, 1], [2, 0, 1, 1]])
def test_with_ties_it_bounds_the_exact_value_from_above(ranks):
    """The exact value: -log of the probability that any of the orders comes up which the ties allow."""
    for seed in range(20):
        rewards = (2 * torch.randn(len(ranks), generator=torch.Generator().manual_seed(seed))).tolist()
        exact = -math.log(exact_order_probability(rewards, orders_allowed(ranks)))
        assert nll(rewards, ranks) >= exact - 1e-12


@pytest.mark.parametrize(("ranks", "top_k"), [([0, 1, 1, 1], None), ([0, 1, 2, 3], 1), ([0, 1, 1, 1], 1)])
def test_a_tie_of_all_the_rest_is_exact(ranks, top_k):
    """One best response and an unordered rest: the chance that the best is taken first."""
    rewards = [0.3, -1.2, 2.0, 0.7]
    exact = exact_order_probability(rewards, orders_allowed([0, 1, 1, 1]))
    assert nll(rewards, ranks, top_k=top_k) == pytest.approx(-math.log(exact), rel=1e-10)


def test_a_full_tie_teaches_nothing():
    rewards = torch.randn(1, 4, requires_grad=True)
    value = plackett_luce_nll(rewards, torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
    value.sum().backward()
    assert value.item() == 0
    assert rewards.grad.count_nonzero() == 0


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_is_the_probability_of_the_first_k_places(top_k):
    rewards = [0.3, -1.2, 2.0, 0.7, -0.4]
    places = [2, 0, 4, 1, 3]
    order = sorted(range(5), key=places.__getitem__)
    same_start = [o for o in itertools.permutations(range(5)) if list(o[:top_k]) == order[:top_k]]
    exact = exact_order_probability(rewards, same_start)
    assert nll(rewards, places, top_k=top_k) == pytest.approx(-math.log(exact), rel=1e-10)


def test_top_k_of_everything_is_the_full_ranking():
    rewards, ranks = [0.3, -1.2, 2.0], [1, 2, 0]
    assert nll(rewards, ranks, top_k=2) == nll(rewards, ranks, top_k=9) == nll(rewards, ranks)


def test_ranks_need_not_be_consecutive():
    rewards = [0.3, -1.2, 2.0]
    assert nll(rewards, [10, 700, 3]) == nll(rewards, [1, 2, 0])


def test_lipo_places_by_the_policy_not_by_the_labels():
    """Where the policy already has the order right, the worst exchange is that of first and last place."""
    s = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    ranks, mask = torch.tensor([[2, 1, 0]]), torch.ones(1, 3, dtype=torch.bool)
    scores = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    value = get_loss("lipo_lambda").fn(RankedResponses(s, 0 * s, ranks + 1, ranks, mask, scores), beta=1.0)
    discount = [1 / math.log(2), 1 / math.log(3), 1 / math.log(4)]
    gain = [1, 2**0.5, 2]
    expected = sum(
        (gain[i] - gain[j]) * abs(discount[i] - discount[j]) * math.log1p(math.exp(i - j))
        for i, j in ((2, 1), (2, 0), (1, 0))
    )
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_lipo_breaks_equal_policy_values_by_column():
    zero = torch.zeros(1, 3, dtype=torch.float64)
    ranks, mask = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)
    scores = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    value = get_loss("lipo_lambda").fn(RankedResponses(zero, zero, ranks + 1, ranks, mask, scores))
    discount = [1 / math.log(2), 1 / math.log(3), 1 / math.log(4)]
    gain = [2, 2**0.5, 1]
    expected = sum((gain[i] - gain[j]) * (discount[i] - discount[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert value.item() == pytest.approx(expected * math.log(2), rel=1e-10)


def test_lipo_weights_have_no_gradient():
    data = random_rankings(seed=30)
    scores = data.scores.clone().requires_grad_()
    value = get_loss("lipo_lambda").fn(data.replace(scores=scores))
    assert not value.requires_grad


def test_mppo_asks_nothing_where_nothing_stands_below_the_best():
    data = random_rankings(seed=31).replace(ranks=torch.tensor([[0, 0, 0, 0], [3, 3, 3, 3], [0, 1, 2, 3]]))
    value = get_loss("mppo").fn(data)
    assert value[:2].tolist() == [0, 0]
    assert value[2] > 0


def test_pro_with_one_response_costs_nothing():
    data = random_rankings(seed=32)
    value = get_loss("pro").fn(data.replace(mask=torch.tensor([[True, False, False, False]]).expand(3, 4)))
    assert value.tolist() == [0, 0, 0]


def test_pro_takes_the_widest_gap_even_where_scores_contradict_the_ranks():
    logps, ranks = torch.tensor([[-1.0, -2.0]], dtype=torch.float64), torch.tensor([[0, 1]])
    scores = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    data = RankedResponses(logps, None, torch.ones_like(ranks), ranks, ranks >= 0, scores)
    assert get_loss("pro").fn(data, sft_weight=0.0).item() == pytest.approx(
        math.log1p(math.exp(-2 * (-2 - -1))), rel=1e-12
    )


def test_sft_is_the_mean_over_the_tokens_of_the_prompts_that_are_there():
    data = random_rankings(seed=33)
    without = data.replace(mask=torch.tensor([[True], [True], [False]]).expand(3, 4))
    fn = get_loss("sft").fn
    kept = data.replace(**{n: v[:2] for n, v in vars(data).items() if isinstance(v, torch.Tensor)})
    assert fn(without)[:2].tolist() == fn(kept).tolist()
    best = data.ranks[:2] == 0
    per_token = -data.logps[:2][best].sum() / data.lengths[:2][best].sum()
    assert fn(without).sum().item() / 2 == pytest.approx(per_token.item(), rel=1e-12)
