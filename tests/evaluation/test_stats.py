import numpy as np
import pytest

from trl_dpo_ext.evaluation import bootstrap_difference, bootstrap_mean


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
