"""Points of several runs compared: which points another point dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .frontier_file import Frontier, FrontierError, FrontierPoint, settings_difference

COLOURS = 10  # in matplotlib's cycle; with more runs, two would have the same colour


@dataclass(frozen=True)
class FrontierEntry:
    """A point of one run, compared with the points of all runs.

    Attributes:
        run: name of the run.
        method: what the run trains.
        point: the point.
        dominated_by: run and step of a point that dominates it (at least its reward at no more KL, one of the two
            strictly) and that no other point dominates; None if there is none.
    """

    run: str
    method: str
    point: FrontierPoint
    dominated_by: tuple[str, int] | None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        by = None if self.dominated_by is None else dict(zip(("run", "step"), self.dominated_by, strict=True))
        return {"run": self.run, "method": self.method, **self.point.as_dict(), "dominated_by": by}


def compare_runs(frontiers: Mapping[str, Frontier]) -> list[FrontierEntry]:
    """Compare the points of several runs by mean reward and summed KL.

    Args:
        frontiers: run name -> frontier.

    Returns:
        all points, run by run, steps ascending.

    Raises:
        FrontierError: there are no points, or the runs have different settings.
    """
    if not any(frontier.points for frontier in frontiers.values()):
        raise FrontierError("None of the runs has a point.")
    (first, of_first), *others = frontiers.items()
    for name, frontier in others:
        if difference := settings_difference(of_first.settings, frontier.settings):
            raise FrontierError(
                f"{first} and {name} were measured differently ({difference}), so their points can't be compared. "
                "Choose runs with the same reward, prompts, length and seed."
            )
    rows = [(name, frontier.method, point) for name, frontier in frontiers.items() for point in frontier.points]
    by = pareto_dominators([(point.reward.mean, point.kl.summed) for _, _, point in rows])
    return [
        FrontierEntry(name, method, point, None if other is None else (rows[other][0], rows[other][2].step))
        for (name, method, point), other in zip(rows, by, strict=True)
    ]


def pareto_dominators(points: Sequence[tuple[float, float]]) -> list[int | None]:
    """Return the index of a point that dominates each point, or None.

    A point dominates another if it has at least its reward at no more KL, one of the two strictly. Of several
    dominators, the one with the most reward, then the least KL, is returned: no point dominates that one.

    Args:
        points: (reward, KL) each.

    Returns:
        an index or None per point.

    >>> pareto_dominators([(0.0, 0.0), (2.0, 1.0), (1.0, 1.5), (3.0, 4.0), (2.0, 1.0)])
    [None, None, 1, None, None]
    """
    found: list[int | None] = []
    for reward, kl in points:
        over = [
            index
            for index, (other_reward, other_kl) in enumerate(points)
            if other_reward >= reward and other_kl <= kl and (other_reward, other_kl) != (reward, kl)
        ]
        found.append(max(over, key=lambda index: (points[index][0], -points[index][1]), default=None))
    return found


def colour_by_method(entries: Sequence[FrontierEntry]) -> bool:
    """Whether colours stand for methods instead of runs: there are more runs than colours, and runs share methods."""
    runs, methods = {row.run for row in entries}, {row.method for row in entries}
    return len(runs) > COLOURS and len(methods) < len(runs)
