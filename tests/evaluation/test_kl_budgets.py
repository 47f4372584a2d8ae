"""What a method reaches within a budget of KL: against values by hand, and over many repetitions."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pytest

from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import FrontierEntry, FrontierError, bootstrap_difference, bootstrap_mean, within_budgets
from trl_dpo_ext.evaluation.frontier.frontier_file import FrontierPoint
from trl_dpo_ext.evaluation.frontier.kl_budgets import Pick, best_mixture
from trl_dpo_ext.evaluation.sampling.sequence_kl import SequenceKL
from trl_dpo_ext.evaluation.stats import Interval

NO_INTERVAL, NO_KL = Interval(0.0, 0.0, 0.0, 0.95), SequenceKL(0.0, 0.0, 0.0, 0.0)


def point(run: str, step: int, rewards: Any, kls: Any, method: str = "a") -> FrontierEntry:
    """Only what is read here: each prompt's numbers, not the means."""
    return FrontierEntry(run, method, FrontierPoint(step, NO_INTERVAL, NO_KL, list(rewards), list(kls)), None)


#                       first half: prompts 0, 2; second half: 1, 3
POINTS = [
    point("one", 0, [0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]),
    point("one", 9, [3.0, 1.0, 3.0, 1.0], [1.0, 3.0, 1.0, 3.0]),  # best of the first half; within 1 only there
    point("two", 9, [2.0, 2.0, 2.0, 4.0], [1.0, 1.0, 3.0, 1.0]),  # best of the second; within 1 only there
    point("other", 5, [1.0, 1.0, 1.0, 1.0], [1.5, 1.5, 1.5, 1.5], method="b"),
]


def test_by_hand():
    half, _, one, other, two, _ = within_budgets(POINTS, [0.5, 1.0, 2.0], baseline="b")
    assert [row.method for row in (half, one, two)] == ["a", "a", "a"]
    # Picked on the first half: half of one at 0 and half of one at 9 (KL 1, reward 3), measured on prompts 1 and 3; on
    # the second: half of two instead, measured on 0 and 2.
    start = Pick("one", 0, 0.5)
    assert half.picks == ((start, Pick("one", 9, 0.5)), (start, Pick("two", 9, 0.5)))
    assert half.reward == bootstrap_mean([1.0, 0.75, 1.0, 0.75])
    assert half.kl == (0.5 + 1.5 + 1.5 + 1.5) / 4
    # Picked on the first half: one, measured on prompts 1 and 3; on the second: two, measured on 0 and 2.
    for row in (one, two):
        assert row.picks == ((Pick("one", 9, 1.0),), (Pick("two", 9, 1.0),))
        assert row.reward == bootstrap_mean([2.0, 1.0, 2.0, 1.0])
        assert row.kl == (1 + 3 + 3 + 3) / 4
    # The baseline is not within 1.
    assert (other.method, other.reward, other.kl, other.difference, other.picks) == ("b", None, None, None, ())
    assert one.difference is None
    assert two.difference == bootstrap_difference([1.0] * 4, [2.0, 1.0, 2.0, 1.0])
    assert two.difference.mean == 0.5


def test_the_best_mixture_is_the_concave_envelope():
    """Against shares of all points on a grid: no mixture within the budget has more reward."""
    generator = np.random.default_rng(3)
    grid = (
        np.array([(i, j, k, 20 - i - j - k) for i in range(21) for j in range(21 - i) for k in range(21 - i - j)]) / 20
    )
    for _ in range(50):
        rewards, kls = generator.normal(size=4), np.abs(generator.normal(size=4)).round(1)
        kls[0] = 0.0
        budget = generator.uniform(0, kls.max() * 1.2)
        shares = best_mixture(rewards, kls, budget)
        assert shares.sum() == pytest.approx(1)
        assert (shares >= 0).all()
        assert np.count_nonzero(shares) <= 2
        assert shares @ kls <= budget + 1e-12
        of_grid = (grid @ rewards)[grid @ kls <= budget].max()
        assert of_grid <= shares @ rewards + 1e-12
        assert shares @ rewards - of_grid < 0.05 * np.ptp(rewards) * 3  # as fine as the grid is


def test_a_mixture_strays_no_further_than_its_share():
    """That the KL of a mixture is at most the weighted mean, on distributions over eight completions."""
    generator = np.random.default_rng(4)
    reference, one, two = generator.dirichlet(np.ones(8), size=3)

    def kl(policy: np.ndarray) -> float:
        return float(policy @ np.log(policy / reference))

    for w in (0.1, 0.5, 0.9):
        assert kl((1 - w) * one + w * two) < (1 - w) * kl(one) + w * kl(two)


def test_of_equal_rewards_that_of_least_kl():
    points = [point(str(kl), 0, [1.0, 1.0], [kl, kl]) for kl in (2.0, 1.0, 3.0)]
    (row,) = within_budgets(points, [8.0])
    assert row.picks == ((Pick("1.0", 0, 1.0),), (Pick("1.0", 0, 1.0),))


def world(generator: Any, methods: dict[str, np.ndarray], prompts: int) -> list[FrontierEntry]:
    """Points whose rewards have these means; prompts are easy or hard for all of them.

    A sample of much reward costs much KL, so that what is within a budget depends on the rewards; "one" always is.
    """
    hard = generator.normal(size=prompts)
    placed = []
    for method, means in methods.items():
        for number, mean in enumerate(means):
            noise = generator.normal(size=prompts)
            kls = 0 * noise if method == "one" else 2 + 0.5 * noise
            placed.append(point(f"{method}{number}", number, mean + hard + noise, kls, method))
    return placed


@pytest.mark.parametrize("means", ["equal", "graded"])
def test_intervals_cover_and_the_best_of_many_is_not_flattered(means):
    generator = np.random.default_rng(0)
    trials, prompts = 400, 64
    many = np.zeros(12) if means == "equal" else np.linspace(-1, 0, 12)
    methods = {"one": np.array([0.3]), "many": many}
    rewards = differences = 0
    errors, flattered = [], []
    for trial in range(trials):
        placed = world(generator, methods, prompts)
        # All points are within the budget by a wide margin, or about half of them by chance.
        budget = 2.0 if trial % 2 else 8.0
        _, row = within_budgets(placed, [budget], baseline="one", resamples=150, seed=trial)
        truth = np.mean([sum(pick.share * many[pick.step] for pick in picks) for picks in row.picks])
        rewards += row.reward.low <= truth <= row.reward.high
        differences += row.difference.low <= truth - 0.3 <= row.difference.high
        errors.append(row.difference.mean - (truth - 0.3))
        best = max(placed[1:], key=lambda other: np.mean(other.point.rewards))
        flattered.append(np.mean(best.point.rewards) - np.mean(placed[0].point.rewards) - (many[best.point.step] - 0.3))
    assert 0.90 <= rewards / trials <= 0.97
    assert 0.90 <= differences / trials <= 0.97
    # Picked and measured on the same prompts, the best is taken for better than it is; by halves it isn't.
    standard_error = np.std(errors) / trials**0.5
    assert abs(np.mean(errors)) < 3 * standard_error
    assert np.mean(flattered) > 5 * standard_error


def test_a_method_against_itself_differs_by_nothing():
    placed = world(np.random.default_rng(1), {"a": np.zeros(5), "b": np.ones(5)}, 20)
    for row in within_budgets(placed, [1.5, 2.0, 4.0], baseline="a"):
        if row.method == "a" and row.reward is not None:
            assert (row.difference.mean, row.difference.low, row.difference.high) == (0, 0, 0)


def test_arguments():
    with pytest.raises(FrontierError, match=r"No run has the method 'dpo'\. The runs have: 'a', 'b'"):
        within_budgets(POINTS, baseline="dpo")
    for budget in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="expected nats, >= 0"):
            within_budgets(POINTS, [budget])
    assert [row.budget for row in within_budgets(POINTS)] == [1, 1, 2, 2, 4, 4, 8, 8]


def write(folder: Any, method: str, rewards: list[float], kls: list[float]) -> str:
    interval = {"mean": float(np.mean(rewards)), "low": 0.0, "high": 9.0, "level": 0.95}
    kl = {"mean": 0.0, "standard_error": 0.1, "summed": float(np.mean(kls)), "summed_standard_error": 0.1}
    settings = {"reward": "vader", "prompts": 4, "prompts_sha256": "0", "max_new_tokens": 4, "seed": 0}
    points = [{"step": 9, "reward": interval, "kl": kl, "rewards": rewards, "kls": kls}]
    folder.mkdir()
    content = {"format": 1, "method": method, "settings": settings, "points": points}
    (folder / "frontier.json").write_text(json.dumps(content))
    return str(folder)


def test_the_command(tmp_path, capsys):
    runs = [
        write(tmp_path / "x", "dpo", [1.0, 1.0, 1.0, 1.0], [1.0] * 4),
        write(tmp_path / "y", "ipo", [1.0, 2.0, 3.0, 4.0], [3.0] * 4),
    ]
    out = tmp_path / "out"
    options = ["--baseline", "dpo", "--budgets", "2", "3", "--output", str(out)]
    assert main(["eval", "frontier", *runs, *options]) == 0
    printed = capsys.readouterr().out
    assert "minus dpo" in printed
    assert "+0.000 [+0.000, +0.000]" in printed
    assert "n/a" in printed
    difference = bootstrap_difference([1.0] * 4, [1.0, 2.0, 3.0, 4.0])
    assert f"+1.500 [{difference.low:+.3f}, {difference.high:+.3f}]" in printed
    rows = list(csv.DictReader((out / "budgets.csv").read_text().splitlines()))
    assert [(row["budget"], row["method"], row["reward"], row["difference"]) for row in rows] == [
        ("2.0", "dpo", "1.0", "0.0"),
        ("2.0", "ipo", "", ""),
        ("3.0", "dpo", "1.0", "0.0"),
        ("3.0", "ipo", "2.5", "1.5"),
    ]
    assert (rows[3]["kl"], rows[3]["pick_1"], rows[1]["pick_2"]) == ("3.0", "1.000 y, step 9", "")

    assert main(["eval", "frontier", *runs, *options, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "dpo"
    assert found["within_budgets"][3]["difference"] == difference.as_dict()
    assert found["within_budgets"][1]["reward"] is None

    assert main(["eval", "frontier", *runs, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["within_budgets"]
    assert {row["budget"] for row in found} == {1, 2, 4, 8}
    assert {row["difference"] for row in found} == {None}

    assert main(["eval", "frontier", *runs, "--baseline", "simpo", "--output", str(tmp_path / "no")]) == 2
    assert "No run has the method 'simpo'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
