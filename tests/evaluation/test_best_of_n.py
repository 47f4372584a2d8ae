import math
from itertools import combinations

import numpy as np
import pytest

from trl_dpo_ext.evaluation import best_of_n, kl_bound


def brute_force(rewards, n):
    """Mean over prompts of the mean over all subsets of n of the best."""
    return np.mean([np.mean([max(subset) for subset in combinations(row, n)]) for row in rewards])


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_against_all_subsets(kind):
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=(4, 9)) if kind == "normal" else generator.integers(0, 3, (4, 9)).astype(float)
    curve = best_of_n(rewards, resamples=20)
    assert [point.n for point in curve] == list(range(1, 10))
    for point in curve:
        assert point.reward.mean == pytest.approx(brute_force(rewards, point.n), rel=1e-12)
        per_prompt = [brute_force([row], point.n) for row in rewards]
        assert point.standard_error == pytest.approx(np.std(per_prompt, ddof=1) / 2, rel=1e-9)
    assert curve[0].reward.mean == pytest.approx(rewards.mean())
    assert curve[-1].reward.mean == pytest.approx(rewards.max(axis=1).mean())


def test_unbiased_for_the_expected_best_of_n_independent_samples():
    # Of n uniform samples the best is n / (n + 1) in expectation.
    curve = best_of_n(np.random.default_rng(1).random((2000, 6)), resamples=20)
    for point in curve:
        assert abs(point.reward.mean - point.n / (point.n + 1)) < 4 * point.standard_error


def test_the_interval_is_over_prompts_and_covers():
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        curve = best_of_n(generator.random((40, 4)), resamples=200, seed=trial)
        covered += curve[2].reward.low <= 3 / 4 <= curve[2].reward.high
    assert 0.90 <= covered / 200 <= 0.97


def test_many_samples_stay_finite():
    curve = best_of_n(np.tile(np.arange(2000.0), (2, 1)), resamples=1)
    # The best of n of 0 ... N - 1 without replacement: n (N + 1) / (n + 1) - 1.
    for n in (1, 10, 1000, 2000):
        assert curve[n - 1].reward.mean == pytest.approx(n * 2001 / (n + 1) - 1, rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_kl_bound_is_reached_without_ties(n):
    # Over m equally likely completions without ties, best-of-n takes the i-th with (i/m)^n - ((i-1)/m)^n.
    m = 20_000
    edges = (np.arange(m + 1) / m) ** n
    chosen = np.diff(edges)
    chosen = chosen[chosen > 0]
    kl = float((chosen * np.log(chosen * m)).sum())
    assert kl_bound(n) == pytest.approx(kl, abs=1e-3)
    assert kl <= kl_bound(n) + 1e-12


def test_kl_bound_holds_with_few_completions():
    edges = (np.arange(4) / 3) ** 4
    chosen = np.diff(edges)
    assert 0 < (chosen * np.log(chosen * 3)).sum() < kl_bound(4) == math.log(4) - 0.75


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[1.0, 2.0], [1.0]], "Prompt 1 has 1 samples and prompt 0 has 2"),
        ([[1.0, 2.0]], "at least two rows"),
        ([[], []], "Prompt 0 has 0 samples"),
        ([], "at least two rows"),
        ([[1.0, 2.0], [1.0, float("nan")]], "nan is not finite"),
    ],
)
def test_bad_values(rewards, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(rewards)
