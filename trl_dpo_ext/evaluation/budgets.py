"""The reward that a method reaches within a budget of KL, measured on other prompts than those it was picked by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .dominance import PlacedPoint, write_csv
from .frontier import FrontierError
from .stats import Interval, bootstrap_means

BUDGETS = (1.0, 2.0, 4.0, 8.0)  # nats


@dataclass(frozen=True)
class Pick:
    """A point and its share of a mixture."""

    run: str
    step: int
    share: float


@dataclass(frozen=True)
class WithinBudget:
    """What a method reaches within a budget.

    Attributes:
        method: of the runs that were picked from.
        budget: nats of KL.
        reward: mean reward of the picks with its interval, each measured on the half that it wasn't picked by; None
            where no point is within the budget.
        kl: what their KL is at most, measured on the same prompts; it may come out a little over the budget.
        difference: reward minus that of the baseline, prompt by prompt; None without a baseline, or where either has no
            point.
        picks: what was picked on the first half of the prompts and on the second: one point, or two with the share of
            completions that each would give; empty where there is none.
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
    placed: Sequence[PlacedPoint],
    budgets: Sequence[float] = BUDGETS,
    *,
    baseline: str | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[WithinBudget]:
    """Return for each budget and method the reward of its best mixture of two points within the budget.

    Methods leave points at different KLs, so the best single point within a budget would say as much about the grid as
    about the method. Two policies can be mixed: each completion drawn from one of them with probability w, from the
    other with 1 - w. The reward of that is the mean of theirs, weighted so, and its KL is at most the weighted mean of
    theirs, because the KL is convex. So the upper concave envelope of a method's points can be had, the reference at
    KL 0 being one of them, and at a budget it is the best mixture of a point within and one beyond.

    The best of many looks better than it is on the prompts that it was picked by. So a mixture is picked by the means
    over every second prompt and measured on the other prompts; then the other way round. Each prompt has so one
    reward, of a mixture that it had no say in, and the mean of them is the method's.

    The interval is a percentile bootstrap over prompts with the picks held fixed. It is about the trained runs: how
    their mean reward would come out on other prompts. It isn't about training again with other seeds, nor does it hold
    for many comparisons at once: of twenty differences, one is expected to leave out the truth. The errors of the two
    halves are independent of what each was picked by, but where several points are equally good not quite of each
    other: a 95 % interval then covers as little as 90 %.

    Args:
        placed: from `gather`, so that value i of all points belongs to the same prompt.
        budgets: nats, >= 0.
        baseline: the method that the others are compared with; None compares none.
        level: of confidence.
        resamples: bootstrap samples drawn.
        seed: of the bootstrap.

    Returns:
        budget by budget, in the given order, the methods in that of `placed`.

    Raises:
        FrontierError: no run has the method `baseline`.
        ValueError: a budget below 0 or that isn't a number, or an argument out of range as in `bootstrap_mean`.
    """
    methods = list(dict.fromkeys(row.method for row in placed))
    if baseline is not None and baseline not in methods:
        raise FrontierError(f"No run has the method {baseline!r} to compare with; the runs have: {_listed(methods)}.")
    if wrong := [budget for budget in budgets if not budget >= 0]:
        raise ValueError(f"budget={wrong[0]!r}: expected nats, >= 0.")
    found = {
        (budget, method): _cross_fit([row for row in placed if row.method == method], budget)
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
    rewards: np.ndarray  # [N] each of the point that was picked without it
    kl: float
    picks: tuple[tuple[Pick, ...], ...]


def _cross_fit(rows: list[PlacedPoint], budget: float) -> _Fit | None:
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
    """Return each point's share of the mixture with the most reward whose mean KL is within the budget.

    Args:
        rewards: [P] of the points.
        kls: [P] of the points, nats.
        budget: nats.

    Returns:
        [P] shares, which sum to 1; one or two aren't 0. Of equally good mixtures that of least KL. None where no point
        is within the budget.

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


def budgets_table(found: Sequence[WithinBudget], baseline: str | None = None) -> Table:
    """Return the comparison for `rich.print`.

    Args:
        found: from `within_budgets`.
        baseline: what was given there.
    """
    level = next((row.reward.level for row in found if row.reward is not None), None)
    note = "" if level is None else f" [{100 * level:g} % interval over prompts, for one comparison at a time]"
    table = Table(title=Text(f"Mean reward within a budget of KL{note}"))
    difference = () if baseline is None else (f"minus {baseline}",)
    for column in ("KL ≤", "method", "reward", *difference, "KL at most"):
        table.add_column(Text(column), justify="left" if column == "method" else "right")
    for row, following in zip(found, [*found[1:], None], strict=False):
        table.add_row(
            f"{row.budget:g}",
            Text(row.method),
            _interval(row.reward),
            *(_interval(row.difference, "+") for _ in difference),
            "n/a" if row.kl is None else f"{row.kl:.3f}",
            end_section=following is not None and following.budget != row.budget,
        )
    return table


def write_budgets_csv(found: Sequence[WithinBudget], path: str | Path) -> None:
    """Write a line for each budget and method; empty where there is no number."""
    rows = []
    for row in found:
        numbers: dict[str, Any] = {"budget": row.budget, "method": row.method}
        for name, interval in (("reward", row.reward), ("difference", row.difference)):
            ends = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
            numbers.update(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        numbers["kl"] = row.kl
        for half in (0, 1):
            picks = row.picks[half] if row.picks else ()
            numbers[f"pick_{half + 1}"] = " + ".join(f"{p.share:.3f} {p.run}, step {p.step}" for p in picks)
        rows.append(numbers)
    write_csv(rows, path)


def _interval(interval: Interval | None, sign: str = "") -> Text:
    if interval is None:
        return Text("n/a")
    return Text(f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
