"""Student's t and Benjamini-Hochberg against printed tables, by hand, and in simulation."""

import numpy as np
import pytest

from trl_dpo_ext.evaluation.student_t import benjamini_hochberg, t_interval, t_test


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_are_those_of_the_tables(df, quantile):
    values = np.arange(df + 1.0)
    half = quantile * values.std(ddof=1) / np.sqrt(df + 1)
    interval = t_interval(values.tolist())
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-4)
    # A mean at the quantile has p = 0.05.
    shifted = values - values.mean() + half
    assert t_test(shifted.tolist()) == pytest.approx(0.05, abs=1e-5)


def test_an_interval_over_five_seeds_covers_what_it_says():
    generator = np.random.default_rng(0)
    covered = [
        interval.low <= 0.3 <= interval.high
        for interval in (t_interval(generator.normal(0.3, 0.02, 5).tolist()) for _ in range(2000))
    ]
    assert 0.935 < np.mean(covered) < 0.965


def test_one_value_or_infinity_has_no_interval():
    for values in ([1.0], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="two finite values"):
            t_interval(values)


def test_equal_values():
    assert t_test([0.0, 0.0]) == 1
    assert t_test([0.1, 0.1]) == 0


def test_benjamini_hochberg_by_hand():
    # Of 5 at 5 %: 0.01 <= 0.01, 0.04 > 0.02, 0.03 <= 0.03, ... the largest that passes takes the smaller with it.
    assert benjamini_hochberg([0.03, 0.01, 0.022, 0.5, 0.9]) == [True, True, True, False, False]
    assert benjamini_hochberg([0.06, 0.9]) == [False, False]
