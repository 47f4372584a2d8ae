import itertools

import numpy as np
import pytest

from trl_dpo_ext.evaluation import bootstrap_difference, bootstrap_mean, sign_test, wilson
from trl_dpo_ext.evaluation.stats import bootstrap_means


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "rewards"])
def test_a_95_percent_interval_covers_95_percent(kind):
    generator = np.random.default_rng(0)
    trials, size = 400, 64
    if kind == "normal":
        values, truth = generator.normal(0.3, 1.0, (trials, size)), 0.3
    else:  # skewed and bounded, a fifth of them exactly zero, as VADER's
        values, truth = generator.beta(3, 1, (trials, size)), 0.8 * 0.75
        values[generator.random((trials, size)) < 0.2] = 0.0
    covered = 0
    for trial in range(trials):
        interval = bootstrap_mean(values[trial], resamples=400, seed=trial)
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / trials <= 0.97


def test_width_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    error = values.std(ddof=1) / 20
    interval = bootstrap_mean(values, level=0.8)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.2816 * error, abs=0.06 * error)
    assert interval.high == pytest.approx(values.mean() + 1.2816 * error, abs=0.06 * error)


def test_float32_values_are_averaged_in_float64():
    values = np.full(100, 0.1, dtype=np.float32)
    assert bootstrap_mean(values).mean == pytest.approx(float(np.float32(0.1)), rel=1e-15)


def test_a_difference_is_taken_pair_by_pair():
    generator = np.random.default_rng(2)
    before = generator.normal(0, 5, 64)  # prompts differ a lot
    after = before + generator.normal(0.5, 0.1, 64)  # each gains about a half
    interval = bootstrap_difference(before, after)
    assert interval.mean == pytest.approx(np.mean(after - before))
    assert 0.4 < interval.low < interval.high < 0.6
    assert bootstrap_difference(after, before).mean == pytest.approx(-interval.mean)


def test_a_paired_difference_covers():
    # Verdicts on two models that meet the same opponent: prompts are easy or hard for both, and a fifth are ties.
    generator = np.random.default_rng(3)
    trials, size = 200, 80
    easy = generator.random((trials, size, 1)) < 0.5
    wins = generator.random((trials, size, 2)) < np.where(easy, [0.7, 0.9], [0.2, 0.3])
    verdicts = np.where(generator.random((trials, size, 2)) < 0.2, 0.5, wins)
    covered = 0
    for trial, (before, after) in enumerate(verdicts.transpose(0, 2, 1)):
        interval = bootstrap_difference(before, after, resamples=200, seed=trial)
        covered += interval.low <= 0.8 * 0.15 <= interval.high
    assert 0.90 <= covered / trials <= 0.97


def test_seeded():
    values = [0.1, 0.9, 0.4, 0.2]
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(np.arange(50.0), seed=1) != bootstrap_mean(np.arange(50.0), seed=2)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least two"),
        ([[1.0, 2.0]], {}, r"shape \(1, 2\)"),
        ([1.0, float("nan")], {}, r"values\[1\]=nan"),
        ([1.0, 2.0], {"level": 95}, "level=95"),
        ([1.0, 2.0], {"resamples": 0}, "resamples=0"),
    ],
)
def test_bad_values(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, **options)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="2 values before but 3 after"):
        bootstrap_difference([1.0, 2.0], [1.0, 2.0, 3.0])


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I: 95 % score intervals without continuity correction.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_intervals(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert (interval.mean, interval.level) == (successes / trials, 0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(("rate", "trials"), [(0.5, 60), (0.3, 100), (0.9, 80), (0.62, 256)])
def test_wilson_covers(rate, trials):
    successes = np.random.default_rng(0).binomial(trials, rate, 2000)
    intervals = {count: wilson(count, trials) for count in set(successes.tolist())}
    covered = np.mean([intervals[count].low <= rate <= intervals[count].high for count in successes.tolist()])
    assert 0.90 <= covered <= 0.97


def test_wilson_with_ties_is_wide_enough():
    generator = np.random.default_rng(1)
    outcomes = generator.choice([0, 0.5, 1], p=[0.2, 0.3, 0.5], size=(2000, 100)).sum(axis=1)
    covered = np.mean([wilson(total, 100).low <= 0.65 <= wilson(total, 100).high for total in outcomes])
    assert covered >= 0.95


def test_wilson_at_its_ends():
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == 1
    assert wilson(0, 5, level=0.5).high < wilson(0, 5).high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "0 successes of 0"), ((3, 2), "3 successes of 2"), ((-1, 2), "-1 successes")],
)
def test_wilson_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)
    with pytest.raises(ValueError, match="level=95"):
        wilson(1, 2, level=95)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_sign_test_against_all_outcomes(size):
    splits = [sum(outcome) for outcome in itertools.product((0, 1), repeat=size)]
    for wins in range(size + 1):
        as_uneven = sum(abs(split - size / 2) >= abs(wins - size / 2) for split in splits) / len(splits)
        found = sign_test([1] * wins + [0] * (size - wins) + [3], [0] * wins + [1] * (size - wins) + [3])
        assert (found.first, found.second, found.ties) == (wins, size - wins, 1)
        assert found.p_value == pytest.approx(as_uneven, rel=1e-12)


def test_sign_test_keeps_its_level():
    generator = np.random.default_rng(2)
    first, second = generator.random((2, 1500, 40)) < 0.4
    rejected = np.mean([sign_test(a, b).p_value <= 0.05 for a, b in zip(first, second, strict=True)])
    assert 0.005 <= rejected <= 0.06  # exact, so never above 5 % but for the simulation's own noise


def test_sign_test_without_a_decided_pair_and_with_many():
    assert sign_test([1, 0.5], [1, 0.5]).p_value == 1
    assert sign_test([1] * 5000, [0] * 5000).p_value == 0
    assert sign_test([1] * 2600 + [0] * 2400, [0] * 2600 + [1] * 2400).p_value == pytest.approx(0.0049, abs=2e-4)


def test_sign_test_refuses():
    with pytest.raises(ValueError, match="2 values and 1"):
        sign_test([1, 2], [1])
    with pytest.raises(ValueError, match="Pair 1 is not finite"):
        sign_test([1, float("nan")], [1, 0])


def test_columns_share_their_resamples():
    values = np.random.default_rng(3).normal(size=(30, 2))
    together = bootstrap_means(np.column_stack([values, values[:, 0]]), resamples=200)
    assert together[0] == together[2]
    alone = bootstrap_mean(values[:, 1], resamples=200)
    assert list(together[1].as_dict().values()) == pytest.approx(list(alone.as_dict().values()), rel=1e-12)
    with pytest.raises(ValueError, match=r"values\[1, 0\]=inf"):
        bootstrap_means(np.array([[1.0, 2.0], [np.inf, 2.0]]))
