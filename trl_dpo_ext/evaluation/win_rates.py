"""Win rates: how often a model's completions beat others, and whether one model wins more often than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from .judging.contracts import Judge, JudgeError
from .judging.judges import apply_judge
from .stats import Interval, SignTest, bootstrap_difference, sign_test, wilson


@dataclass(frozen=True)
class WinRate:
    """How often completions beat those of an opponent.

    Attributes:
        verdicts: [N] 1 for a win, 0 for a loss, 0.5 for a tie, None for no verdict.
        rate: wins plus half the ties, as a share of the prompts with a verdict, with its Wilson interval.
    """

    verdicts: list[float | None]
    rate: Interval

    @property
    def wins(self) -> int:
        """Number of prompts on which the completion is better."""
        return self.verdicts.count(1)

    @property
    def losses(self) -> int:
        """Number of prompts on which the opponent's completion is better."""
        return self.verdicts.count(0)

    @property
    def ties(self) -> int:
        """Number of prompts on which neither is better."""
        return self.verdicts.count(0.5)

    @property
    def no_verdict(self) -> int:
        """Number of prompts without a verdict. The rate leaves them out."""
        return self.verdicts.count(None)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {
            "rate": self.rate.as_dict(),
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "no_verdict": self.no_verdict,
        }


@dataclass(frozen=True)
class WinRateDifference:
    """Comparison of two models that met the same opponent on the same prompts.

    Attributes:
        difference: win rate of the second - win rate of the first, with its paired bootstrap interval.
        test: exact sign test over the prompts whose verdicts differ; McNemar's test if there are no ties.
    """

    difference: Interval
    test: SignTest

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {"difference": self.difference.as_dict(), "test": self.test.as_dict()}


def win_rate(
    judge: Judge,
    prompts: Sequence[str],
    completions: Sequence[str],
    opponents: Sequence[str],
    *,
    level: float = 0.95,
) -> WinRate:
    """Judge completions against an opponent's, prompt by prompt.

    Args:
        judge: from `get_judge`, or any function of prompts, first and second completions.
        prompts: [N] all different, so that the verdicts are independent.
        completions: [N] completions of the model.
        opponents: [N] completions of another model, or the dataset's own.
        level: confidence level.

    Returns:
        the verdicts and the rate.

    Raises:
        JudgeError: no pair got a verdict, or the judge's result is invalid.
        ValueError: different numbers of prompts and completions.
    """
    return win_rate_of(apply_judge(judge, prompts, completions, opponents), level=level)


def win_rate_of(verdicts: Sequence[float | None], *, level: float = 0.95) -> WinRate:
    """Return the win rate of verdicts.

    Raises:
        JudgeError: there are no verdicts.
    """
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        raise JudgeError(f"None of {len(verdicts)} pairs has a verdict, so there is no win rate.")
    return WinRate(list(verdicts), wilson(sum(known), len(known), level=level))


def win_rate_difference(first: WinRate, second: WinRate, *, level: float = 0.95) -> WinRateDifference:
    """Compare two models that met the same opponent, on the prompts where both have a verdict.

    Raises:
        ValueError: the numbers of prompts differ, or fewer than two prompts have a verdict for both.
    """
    if len(first.verdicts) != len(second.verdicts):
        raise ValueError(f"{len(first.verdicts)} prompts and {len(second.verdicts)} prompts can't be paired.")
    pairs = [
        (one, other)
        for one, other in zip(first.verdicts, second.verdicts, strict=True)
        if one is not None and other is not None
    ]
    before, after = [one for one, _ in pairs], [other for _, other in pairs]
    return WinRateDifference(bootstrap_difference(before, after, level=level), sign_test(before, after))


def win_rate_table(rates: Mapping[tuple[str, str], WinRate], opponent: str) -> Table:
    """Return a table of win rates, for `rich.print`.

    Args:
        rates: (model, temperature), as shown -> win rate.
        opponent: name of the opponent.
    """
    level = next(iter(rates.values())).rate.level
    table = Table(title=Text(f"Win rate against {opponent}, ties count half, [{100 * level:g} % Wilson interval]"))
    for column in ("model", "temperature", "win rate", "wins", "ties", "losses", "no verdict"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for (model, temperature), found in rates.items():
        rate = Text(f"{found.rate.mean:.3f} [{found.rate.low:.3f}, {found.rate.high:.3f}]")
        counts = map(str, (found.wins, found.ties, found.losses, found.no_verdict))
        table.add_row(Text(model), temperature, rate, *counts)
    return table
