"""What the linter found, for people, for programs, and for the log of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .dataset_checks import TABLE_CHECKS, Table
from .lengths import summary
from .row_checks import READING, ROW_CHECKS, SEVERITIES, TOKEN_CHECKS, Check, Severity

_SHOWN = 5

CHECKS: dict[str, Check] = {check.id: check for check in (*READING, *ROW_CHECKS, *TOKEN_CHECKS, *TABLE_CHECKS)}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in one split.

    Attributes:
        id: of the check (`CHECKS`).
        split: where.
        count: rows it concerns.
        rows: their numbers in the dataset as it was given, from 0; empty where the split as a whole is meant.
        note: what was found, or the first row's.
        twins: for each of `rows`, the (split, row) it repeats or contradicts; empty for checks of single rows.
    """

    id: str
    split: str
    count: int
    rows: list[int]
    note: str
    twins: list[tuple[str, int]] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """How bad it is: "error", "warning" or "info"."""
        return CHECKS[self.id].severity

    @property
    def advice(self) -> str:
        """What to do."""
        return CHECKS[self.id].advice

    @property
    def first_rows(self) -> str:
        """The first row numbers, for people.

        Example:
            >>> Finding("duplicate-row", "train", 6, [1, 2, 3, 5, 8, 13], "").first_rows
            '1, 2, 3, 5, 8, ...'
        """
        return ", ".join([*map(str, self.rows[:_SHOWN]), *(["..."] if len(self.rows) > _SHOWN else [])])

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        fields = {"id": self.id, "severity": self.severity, "split": self.split, "count": self.count}
        twins = [{"split": split, "row": row} for split, row in self.twins]
        return {**fields, "rows": self.rows, "twins": twins, "note": self.note, "advice": self.advice}


@dataclass(frozen=True)
class Report:
    """All findings of a dataset, the worst first.

    Attributes:
        rows: how many rows each split has.
        findings: by severity; within one, in the order of the checks.
        tables: what was kept of the rows, by split.
    """

    rows: dict[str, int]
    findings: list[Finding]
    tables: Mapping[str, Table] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        order = {id: (SEVERITIES.index(check.severity), place) for place, (id, check) in enumerate(CHECKS.items())}
        self.findings.sort(key=lambda finding: order[finding.id])

    def at_least(self, severity: Severity) -> list[Finding]:
        """Return the findings of this severity and the worse ones."""
        return [f for f in self.findings if SEVERITIES.index(f.severity) <= SEVERITIES.index(severity)]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: rows and lengths of each split, and the findings."""
        lengths = {name: summary(table.lengths, table.unit) for name, table in self.tables.items()}
        splits = {name: {"rows": count, "lengths": lengths.get(name)} for name, count in self.rows.items()}
        counts = {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES}
        return {"splits": splits, "counts": counts, "findings": [finding.as_dict() for finding in self.findings]}

    def lines(self) -> list[str]:
        """Return errors and warnings for a log, a line each."""
        return [
            f"{f.severity} {f.id} in {f.split}: {f.count:,} row{'s' * (f.count != 1)}"
            + (f" ({f.first_rows})" if f.rows else "")
            + f", {f.note}."
            for f in self.at_least("warning")
        ]
