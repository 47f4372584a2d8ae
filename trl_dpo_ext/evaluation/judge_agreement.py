"""How often judges agree, with each other and with people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .stats import Interval, wilson


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges on the same pairs.

    Attributes:
        rate: share of pairs with the same verdict, ties included, with its Wilson interval.
        pairs: number of pairs with a verdict from both.
        decided: the same share among the pairs that neither called a tie. None if there are none.
        decided_pairs: number of those pairs.
        kappa: Cohen's kappa over first, tie and second. None if chance alone gives full agreement. The interval is a
            percentile bootstrap over pairs, without the resamples that have no kappa.
    """

    rate: Interval
    pairs: int
    decided: Interval | None
    decided_pairs: int
    kappa: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {
            "rate": self.rate.as_dict(),
            "pairs": self.pairs,
            "decided": self.decided and self.decided.as_dict(),
            "decided_pairs": self.decided_pairs,
            "kappa": self.kappa and self.kappa.as_dict(),
        }


def agreement(
    first: Sequence[float | None],
    second: Sequence[float | None],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare the verdicts of two judges on the same pairs of completions, as the DPO paper does in section 6.4.

    Args:
        first: [N] 1, 0.5, 0, or None for no verdict.
        second: [N] verdicts of the other judge, or of people.
        level: confidence level.
        resamples: number of bootstrap resamples for kappa.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the numbers of verdicts differ, or no pair has a verdict from both.

    Example:
        >>> found = agreement([1, 1, 0, 0, 0.5], [1, 0, 0, 0, 0.5])
        >>> found.rate.mean, found.decided.mean, round(found.kappa.mean, 4)
        (0.8, 0.75, 0.6875)
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} verdicts and {len(second)} verdicts: both judges must judge the same pairs.")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        raise ValueError("No pair has a verdict from both judges.")
    same = sum(a == b for a, b in both)
    decided = [(a, b) for a, b in both if 0.5 not in (a, b)]
    return Agreement(
        rate=wilson(same, len(both), level=level),
        pairs=len(both),
        decided=wilson(sum(a == b for a, b in decided), len(decided), level=level) if decided else None,
        decided_pairs=len(decided),
        kappa=_kappa_interval(both, level, resamples, seed),
    )


def cohen_kappa(counts: np.ndarray) -> float | None:
    """Return Cohen's kappa, (observed - expected) / (1 - expected) agreement.

    Args:
        counts: [C, C] number of pairs that the first judge put into category i and the second into category j.

    Returns:
        at most 1; 0 if they agree as often as by chance; None if chance alone gives full agreement.

    Reference:
        Cohen 1960, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20.
    """
    shares = counts / counts.sum()
    expected = float(shares.sum(axis=1) @ shares.sum(axis=0))
    return None if expected >= 1 - 1e-12 else (float(np.trace(shares)) - expected) / (1 - expected)


def agreements(verdicts: Mapping[str, Sequence[float | None]], **options: Any) -> dict[tuple[str, str], Agreement]:
    """Return the `agreement` of every two judges, by name."""
    return {
        (one, other): agreement(verdicts[one], verdicts[other], **options) for one, other in combinations(verdicts, 2)
    }


def agreement_table(found: Mapping[tuple[str, str], Agreement]) -> Table:
    """Return a table of agreements, for `rich.print`."""
    level = next(iter(found.values())).rate.level
    table = Table(title=Text(f"Agreement [{100 * level:g} % interval]"))
    for column in ("judge", "judge", "agree", "pairs", "without ties", "pairs", "Cohen's kappa"):
        table.add_column(column, justify="left" if column == "judge" else "right")
    for (one, other), row in found.items():
        decided = (_interval(row.decided), str(row.decided_pairs))
        table.add_row(Text(one), Text(other), _interval(row.rate), str(row.pairs), *decided, _interval(row.kappa))
    return table


def _kappa_interval(both: list[tuple[float, float]], level: float, resamples: int, seed: int) -> Interval | None:
    cells = Counter((int(2 * a), int(2 * b)) for a, b in both)
    counts = np.array([[cells[i, j] for j in range(3)] for i in range(3)])
    kappa = cohen_kappa(counts)
    if kappa is None:
        return None
    drawn = np.random.default_rng(seed).multinomial(len(both), (counts / counts.sum()).ravel(), size=resamples)
    kappas = [value for table in drawn if (value := cohen_kappa(table.reshape(3, 3))) is not None]
    low, high = np.quantile(kappas, [(1 - level) / 2, (1 + level) / 2])
    return Interval(kappa, float(low), float(high), level)


def _interval(interval: Interval | None) -> Text:
    return Text("-" if interval is None else f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
