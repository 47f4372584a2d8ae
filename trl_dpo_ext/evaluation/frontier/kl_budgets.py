"""The reward that a method reaches within a KL budget, measured on prompts that were not used to select the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..stats import Interval, bootstrap_means
from .frontier_file import FrontierError
from .run_comparison import FrontierEntry

BUDGETS = (1.0, 2.0, 4.0, 8.0)  # nats


@dataclass(frozen=True)
class Pick:
    """A point of a run, and the share of a mixture's completions that it gives."""

    run: str
    step: int
    share: float


@dataclass(frozen=True)
class WithinBudget:
    """What a method reaches within a KL budget.

    Attributes:
        method: the method.
        budget: nats of KL.
        reward: mean reward of the selected mixtures with its interval, each measured on the half of the prompts that
            didn't select it. None if no point is within the budget.
        kl: upper bound on their KL, measured on the same prompts. It can slightly exceed the budget.
        difference: reward minus the baseline's reward, prompt by prompt. None without a baseline, or if either has no
            point.
        picks: the mixture selected on the first half of the prompts, and the one selected on the second: one or two
            points each. Empty if no point is within the budget.
    """

    method: str
    budget: float
    reward: Interval | None
    kl: float | None
    difference: Interval | None
    picks: tuple[tuple[Pick, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {
            "method": self.method,
            "budget": self.budget,
            "reward": None if self.reward is None else self.reward.as_dict(),
            "kl": self.kl,
            "difference": None if self.difference is None else self.difference.as_dict(),
            "picks": [[asdict(pick) for pick in picks] for picks in self.picks],
        }


def within_budgets(
    entries: Sequence[FrontierEntry],
    budgets: Sequence[float] = BUDGETS,
    *,
    baseline: str | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[WithinBudget]:
    """Return, for each budget and method, the reward of the best mixture of two points within the budget.

    Methods have points at different KLs, so the best single point within a budget depends on the grid as much as on
    the method. Two policies can be mixed: each completion comes from one of them with probability w, from the other
    with 1 - w. The mixture's reward is the weighted mean of theirs, and its KL is at most the weighted mean of theirs,
    because the KL is convex. So a method can reach the upper concave envelope of its points, the reference at KL 0
    included. At a given budget, that is the best mixture of one point within the budget and one beyond it.

    Selecting the best of many overestimates it on the prompts used for the selection. So a mixture is selected by its
    mean over every second prompt and measured on the other prompts, and vice versa. Each prompt then contributes one
    reward, from a mixture that the other half selected. The method's reward is their mean.

    The interval is a percentile bootstrap over prompts with the selections held fixed. It covers how these trained
    runs would do on other prompts. It doesn't cover training with other seeds, and it holds for one comparison at a
    time: of twenty differences, one is expected to miss the truth. If several points are equally good, the two halves
    are not quite independent, and a 95 % interval covers as little as 90 %.

    Args:
        entries: from `compare_runs`, so that value i of all points belongs to the same prompt.
        budgets: nats, >= 0.
        baseline: the method that the others are compared with. None compares none.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        budget by budget in the given order, methods in the order of `entries`.

    Raises:
        FrontierError: no run has the method `baseline`.
        ValueError: a budget is negative or not a number, or an argument is out of range as in `bootstrap_mean`.
    """
    methods = list(dict.fromkeys(row.method for row in entries))
    if baseline is not None and baseline not in methods:
        raise FrontierError(f"No run has the method {baseline!r}. The runs have: {', '.join(map(repr, methods))}.")
    if wrong := [budget for budget in budgets if not budget >= 0]:
        raise ValueError(f"budget={wrong[0]!r}: expected nats, >= 0.")
    found = {
        (budget, method): _cross_fit([row for row in entries if row.method == method], budget)
        for budget in budgets
        for method in methods
    }
    rewards = {key: fit.rewards for key, fit in found.items() if fit is not None}
    differences = {
        (budget, method): values - rewards[budget, baseline]
        for (budget, method), values in rewards.items()
        if baseline is not None and (budget, baseline) in rewards
    }
    intervals: list[Interval] = []
    if columns := [*rewards.values(), *differences.values()]:
        intervals = bootstrap_means(np.stack(columns, axis=1), level=level, resamples=resamples, seed=seed)
    of_reward = dict(zip(rewards, intervals, strict=False))
    of_difference = dict(zip(differences, intervals[len(rewards) :], strict=True))
    return [
        WithinBudget(
            method,
            budget,
            of_reward.get((budget, method)),
            None if fit is None else fit.kl,
            of_difference.get((budget, method)),
            () if fit is None else fit.picks,
        )
        for (budget, method), fit in found.items()
    ]


@dataclass(frozen=True)
class _Fit:
    rewards: np.ndarray  # [N] of the mixture that the other half selected
    kl: float
    picks: tuple[tuple[Pick, ...], ...]


def _cross_fit(rows: list[FrontierEntry], budget: float) -> _Fit | None:
    rewards, kls = (np.array([getattr(row.point, name) for row in rows]) for name in ("rewards", "kls"))  # [points, N]
    first, second = slice(0, None, 2), slice(1, None, 2)
    measured, spent = np.empty(rewards.shape[1]), np.empty(rewards.shape[1])
    picks = []
    for here, there in ((first, second), (second, first)):
        shares = best_mixture(rewards[:, here].mean(axis=1), kls[:, here].mean(axis=1), budget)
        if shares is None:
            return None
        measured[there], spent[there] = shares @ rewards[:, there], shares @ kls[:, there]
        picks.append(tuple(Pick(rows[i].run, rows[i].point.step, float(shares[i])) for i in np.flatnonzero(shares)))
    return _Fit(measured, float(spent.mean()), tuple(picks))


def best_mixture(rewards: np.ndarray, kls: np.ndarray, budget: float) -> np.ndarray | None:
    """Return the shares of the mixture with the most reward whose mean KL is within the budget.

    Args:
        rewards: [P] mean reward of each point.
        kls: [P] mean KL of each point, nats.
        budget: nats.

    Returns:
        [P] shares that sum to 1; one or two are not 0. Of equally good mixtures, the one with the least KL. None if no
        point is within the budget.

    Example:
        >>> best_mixture(np.array([0.0, 1.0]), np.array([0.0, 4.0]), 1.0).tolist()
        [0.75, 0.25]
    """
    within, beyond = np.flatnonzero(kls <= budget), np.flatnonzero(kls > budget)
    if not len(within):
        return None
    mixtures = [(point, point, 0.0) for point in within]
    mixtures += [(i, j, (budget - kls[i]) / (kls[j] - kls[i])) for i in within for j in beyond]
    ways = [((1 - w) * rewards[i] + w * rewards[j], -((1 - w) * kls[i] + w * kls[j])) for i, j, w in mixtures]
    i, j, w = mixtures[max(range(len(ways)), key=ways.__getitem__)]
    shares = np.zeros(len(kls))
    shares[i], shares[j] = 1 - w, w if j != i else 1 - w
    return shares
