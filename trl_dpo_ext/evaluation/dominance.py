"""Runs on one frontier: which of their points another point is better than."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from .best_of_n import BestOfN
from .frontier import Frontier, FrontierError, FrontierPoint, settings_difference
from .stats import Interval

COLOURS = 10  # of matplotlib's cycle; beyond them two runs would look the same


@dataclass(frozen=True)
class PlacedPoint:
    """A point among those of all runs.

    Attributes:
        run: whose it is.
        method: what the run trains.
        point: itself.
        dominated_by: run and step of a point that has at least its reward and at most its KL, one of them strictly,
            and isn't dominated itself; None where there is no such point.
    """

    run: str
    method: str
    point: FrontierPoint
    dominated_by: tuple[str, int] | None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        by = None if self.dominated_by is None else dict(zip(("run", "step"), self.dominated_by, strict=True))
        return {"run": self.run, "method": self.method, **self.point.as_dict(), "dominated_by": by}


def gather(frontiers: Mapping[str, Frontier]) -> list[PlacedPoint]:
    """Place the points of runs among each other, by mean reward and summed KL.

    Args:
        frontiers: by the names that the runs are to have.

    Returns:
        all points, run by run, steps ascending.

    Raises:
        FrontierError: no points, or runs that were not measured in the same way.
    """
    if not any(frontier.points for frontier in frontiers.values()):
        raise FrontierError("There is no point in any of the runs.")
    (first, of_first), *others = frontiers.items()
    for name, frontier in others:
        if difference := settings_difference(of_first.settings, frontier.settings):
            raise FrontierError(
                f"{first} and {name} were measured differently ({difference}), so their points can't be compared. "
                "Give runs with the same reward, prompts, length and seed."
            )
    rows = [(name, frontier.method, point) for name, frontier in frontiers.items() for point in frontier.points]
    by = dominating([(point.reward.mean, point.kl.summed) for _, _, point in rows])
    return [
        PlacedPoint(name, method, point, None if other is None else (rows[other][0], rows[other][2].step))
        for (name, method, point), other in zip(rows, by, strict=True)
    ]


def read_best_of_n(path: str | Path, settings: Mapping[str, Any]) -> list[BestOfN]:
    """Return the curve that `trl-dpo-ext eval best-of-n --json` wrote, to lay it beside runs.

    Args:
        path: of the file.
        settings: of the runs.

    Raises:
        FrontierError: it can't be read, is no such curve, or has another reward, temperature or length or other prompts
            than the runs.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        curve = [
            BestOfN(int(row["n"]), Interval(**row["reward"]), float(row["standard_error"]), float(row["kl_bound"]))
            for row in content["curve"]
        ]
        measured = {key: content[key] for key in ("reward", "prompts", "prompts_sha256", "max_new_tokens")}
        temperature = content["temperature"]
        if not curve:
            raise ValueError("there is no point")
    except OSError as error:
        raise FrontierError(f"{path} can't be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise FrontierError(
            f"{path} is not what eval best-of-n --json writes: {type(error).__name__} {error}."
        ) from error
    difference = settings_difference(measured, {key: settings.get(key) for key in measured})
    if difference is None and temperature != 1:
        # A file of samples doesn't tell how it was sampled: None.
        difference = f"temperature: {temperature} and 1"
    if difference:
        raise FrontierError(
            f"{path} and the runs were measured differently ({difference}), so they can't be laid beside each other. "
            f"Sample the reference model with eval best-of-n --reward {settings['reward']} --first --prompts "
            f"{settings['prompts']} --max-new-tokens {settings['max_new_tokens']}, with the runs' --data."
        )
    return curve


def dominating(points: Sequence[tuple[float, float]]) -> list[int | None]:
    """Return, for each (reward, KL), which point dominates it: at least its reward at most its KL, one strictly.

    Of several it is one that isn't dominated itself: that of most reward, then of least KL.

    >>> dominating([(0.0, 0.0), (2.0, 1.0), (1.0, 1.5), (3.0, 4.0), (2.0, 1.0)])
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


def by_method(placed: Sequence[PlacedPoint]) -> bool:
    """Whether to tell points apart by method and not by run: runs share methods, and outnumber the colours."""
    runs, methods = {row.run for row in placed}, {row.method for row in placed}
    return len(runs) > COLOURS and len(methods) < len(runs)


def frontier_table(placed: Sequence[PlacedPoint], settings: Mapping[str, Any]) -> Table:
    """Return the points for `rich.print`.

    Args:
        placed: from `gather`.
        settings: of the runs.
    """
    level = placed[0].point.reward.level
    table = Table(
        title=Text(
            f"Mean reward ({settings['reward']}) against sequence KL, {settings['prompts']} prompts, "
            f"{settings['max_new_tokens']} new tokens, [{100 * level:g} % interval]"
        )
    )
    methods = ("method",) if by_method(placed) else ()
    for column in (*methods, "run", "step", "reward", "KL, nats ± SE", "dominated by"):
        table.add_column(column, justify="left" if column in ("method", "run", "dominated by") else "right")
    for row in placed:
        r, kl = row.point.reward, row.point.kl
        table.add_row(
            *(Text(row.method) for _ in methods),
            Text(row.run),
            str(row.point.step),
            Text(f"{r.mean:.3f} [{r.low:.3f}, {r.high:.3f}]"),
            f"{kl.summed:.3f} ± {kl.summed_standard_error:.3f}",
            Text("" if row.dominated_by is None else f"{row.dominated_by[0]}, step {row.dominated_by[1]}"),
        )
    return table


def write_frontier_csv(placed: Sequence[PlacedPoint], path: str | Path) -> None:
    """Write a line for each point, under a temporary name that is then changed."""
    write_csv([_flat(row) for row in placed], path)


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows with the same columns, under a temporary name that is then changed."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _flat(row: PlacedPoint) -> dict[str, Any]:
    reward, kl = row.point.reward, row.point.kl
    run, step = row.dominated_by or ("", "")
    return {
        "run": row.run,
        "method": row.method,
        "step": row.point.step,
        "reward": reward.mean,
        "reward_low": reward.low,
        "reward_high": reward.high,
        "kl": kl.summed,
        "kl_standard_error": kl.summed_standard_error,
        "kl_log_ratio": kl.mean,
        "kl_log_ratio_standard_error": kl.standard_error,
        "dominated_by_run": run,
        "dominated_by_step": step,
    }
