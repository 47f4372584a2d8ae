"""Win rates: how often a model's completions are better than others, and whether one model wins more than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from .judges import Judge, JudgeError, apply_judge
from .stats import Interval, SignTest, bootstrap_difference, sign_test, wilson


@dataclass(frozen=True)
class WinRate:
    """How often completions are better than those of an opponent.

    Attributes:
        verdicts: [N] 1 a win, 0 a loss, 0.5 a tie, None where the judge came to no verdict.
        rate: wins and half the ties, as a share of the prompts with a verdict; Wilson interval.
    """

    verdicts: list[float | None]
    rate: Interval

    @property
    def wins(self) -> int:
        """Prompts on which the completion is better."""
        return self.verdicts.count(1)

    @property
    def losses(self) -> int:
        """Prompts on which the opponent's completion is better."""
        return self.verdicts.count(0)

    @property
    def ties(self) -> int:
        """Prompts on which neither is better."""
        return self.verdicts.count(0.5)

    @property
    def no_verdict(self) -> int:
        """Prompts that the judge said nothing about; the rate leaves them out."""
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
    """Of two models that met the same opponent on the same prompts, which one wins more.

    Attributes:
        difference: win rate of the second - of the first, with its paired bootstrap interval.
        test: exact sign test over the prompts whose verdicts differ; without ties McNemar's.
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
        completions: [N] of the model.
        opponents: [N] of another model, or the dataset's own.
        level: of confidence.

    Raises:
        JudgeError: not one verdict was come to, or the judge's verdicts are none.
        ValueError: different numbers of prompts and completions.
    """
    return win_rate_of(apply_judge(judge, prompts, completions, opponents), level=level)


def win_rate_of(verdicts: Sequence[float | None], *, level: float = 0.95) -> WinRate:
    """Return the win rate that verdicts add up to.

    Raises:
        JudgeError: there is no verdict.
    """
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        raise JudgeError(f"There is no verdict on any of {len(verdicts)} pairs, so there is no win rate.")
    return WinRate(list(verdicts), wilson(sum(known), len(known), level=level))


def win_rate_difference(first: WinRate, second: WinRate, *, level: float = 0.95) -> WinRateDifference:
    """Compare two models that met the same opponent on the same prompts, on those with a verdict for both.

    Raises:
        ValueError: different numbers of prompts, or fewer than two with a verdict for both.
    """
    if len(first.verdicts) != len(second.verdicts):
        raise ValueError(f"{len(first.verdicts)} prompts and {len(second.verdicts)}: they can't be paired.")
    pairs = [
        (one, other)
        for one, other in zip(first.verdicts, second.verdicts, strict=True)
        if one is not None and other is not None
    ]
    before, after = [one for one, _ in pairs], [other for _, other in pairs]
    return WinRateDifference(bootstrap_difference(before, after, level=level), sign_test(before, after))


def win_rate_table(rates: Mapping[tuple[str, str], WinRate], opponent: str) -> Table:
    """Return a table for `rich.print`.

    Args:
        rates: by (model, temperature), as they are to be shown.
        opponent: whom they met.
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
