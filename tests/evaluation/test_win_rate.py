import io
import json
import random

import numpy as np
import pytest
from rich.console import Console

from tests.helpers import WORDS, tiny_model, tiny_tokenizer
from trl_dpo_ext.evaluation import (
    JudgeError,
    reward_judge,
    sample,
    wilson,
    win_rate,
    win_rate_difference,
    win_rate_of,
    win_rate_table,
)


def vowels(prompts, completions):
    return [sum(letter in "aeiou" for letter in text) for text in completions]


@pytest.fixture(scope="module")
def samples():
    """Two sets of samples of one model, and one of another."""
    tokenizer = tiny_tokenizer()
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS, k=3)) for _ in range(96)]
    options = {"max_new_tokens": 8, "progress": False, "batch_size": 96}
    one = [sample(tiny_model(tokenizer), tokenizer, prompts, seed=seed, **options).completions for seed in (0, 1)]
    other = sample(tiny_model(tokenizer, seed=5), tokenizer, prompts, **options).completions
    return prompts, *one, other


def test_counts_and_rate():
    found = win_rate(reward_judge(vowels), ["p"] * 5, ["ae", "a", "b", "i", "same"], ["a", "ae", "c", "x", "same"])
    assert found.verdicts == [1, 0, 0.5, 1, 0.5]
    assert (found.wins, found.losses, found.ties, found.no_verdict) == (2, 1, 2, 0)
    assert found.rate == wilson(3, 5)
    assert json.loads(json.dumps(found.as_dict()))["rate"]["mean"] == 0.6


def test_a_model_against_itself_is_a_half_within_its_interval(samples):
    prompts, once, again, _ = samples
    found = win_rate(reward_judge(vowels), prompts, once, again)
    assert min(found.wins, found.losses) > 20
    assert found.rate.low <= 0.5 <= found.rate.high
    assert win_rate(reward_judge(vowels), prompts, once, once).rate.mean == 0.5


def test_swapped_sides_give_one_minus_the_rate(samples):
    prompts, once, _, other = samples
    there = win_rate(reward_judge(vowels), prompts, once, other)
    back = win_rate(reward_judge(vowels), prompts, other, once)
    assert there.rate.mean != 0.5
    assert back.rate.mean == pytest.approx(1 - there.rate.mean)
    assert (back.rate.low, back.rate.high) == pytest.approx((1 - there.rate.high, 1 - there.rate.low))


def test_prompts_without_a_verdict_are_left_out_and_counted():
    found = win_rate_of([1, None, 0, 1, None])
    assert (found.rate, found.no_verdict) == (wilson(2, 3), 2)
    with pytest.raises(JudgeError, match="None of 2 pairs has a verdict"):
        win_rate_of([None, None])


def test_two_models_are_compared_pair_by_pair():
    first = win_rate_of([0] * 12 + [1] * 8 + [0.5] * 10 + [None, 1])
    second = win_rate_of([1] * 12 + [1] * 6 + [0] * 2 + [0.5] * 10 + [1, None])
    found = win_rate_difference(first, second)
    assert found.difference.mean == pytest.approx(10 / 30)
    assert found.difference.low > 0
    assert (found.test.first, found.test.second, found.test.ties) == (2, 12, 16)
    # McNemar, exact: 2 of 14 discordant pairs, (1 + 14 + 91) / 2^14 on either side.
    assert found.test.p_value == pytest.approx(2 * 106 / 2**14)
    assert json.loads(json.dumps(found.as_dict()))["test"]["second"] == 12
    with pytest.raises(ValueError, match="32 prompts and 1"):
        win_rate_difference(first, win_rate_of([1]))


def test_the_interval_covers():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        found = win_rate_of(generator.choice([0.0, 1.0], p=[0.42, 0.58], size=80).tolist())
        covered.append(found.rate.low <= 0.58 <= found.rate.high)
    assert 0.90 <= np.mean(covered) <= 0.97


def test_the_table():
    rates = {("[a] model", "0.7"): win_rate_of([1, 1, 0, 0.5]), ("b", "1"): win_rate_of([1, None])}
    out = io.StringIO()
    Console(file=out, width=140).print(win_rate_table(rates, "the dataset"))
    low, high = wilson(2.5, 4).low, wilson(2.5, 4).high
    text = out.getvalue()
    assert "Win rate against the dataset" in text
    assert [f"0.625 [{low:.3f}, {high:.3f}]", "2", "1", "1", "0"] == [
        cell.strip() for cell in next(line for line in text.splitlines() if "[a] model" in line).split("│")[3:-1]
    ]
