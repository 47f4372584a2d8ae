"""The linter's findings, for people, for programs, and for the log of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .check import READING_CHECKS, SEVERITIES, Check, Severity
from .dataset_checks import DATASET_CHECKS, SplitContents
from .lengths import length_numbers
from .text_checks import TEXT_CHECKS
from .token_checks import TOKEN_CHECKS

_SHOWN_ROWS = 5

CHECKS: dict[str, Check] = {
    check.id: check for check in (*READING_CHECKS, *TEXT_CHECKS, *TOKEN_CHECKS, *DATASET_CHECKS)
}


@dataclass(frozen=True)
class Finding:
    """One kind of problem in one split.

    Attributes:
        id: the check's id (see `CHECKS`).
        split: the split's name.
        count: how many rows it concerns.
        rows: their numbers in the user's dataset, from 0; empty if the finding is about the split as a whole.
        note: what was found, in the first of the rows.
        twins: for each of `rows`, the (split, row) that it repeats or contradicts; empty for checks of single rows.
    """

    id: str
    split: str
    count: int
    rows: list[int]
    note: str
    twins: list[tuple[str, int]] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """The check's severity: "error", "warning" or "info"."""
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
        return ", ".join([*map(str, self.rows[:_SHOWN_ROWS]), *(["..."] if len(self.rows) > _SHOWN_ROWS else [])])

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        fields = {"id": self.id, "severity": self.severity, "split": self.split, "count": self.count}
        twins = [{"split": split, "row": row} for split, row in self.twins]
        return {**fields, "rows": self.rows, "twins": twins, "note": self.note, "advice": self.advice}


@dataclass(frozen=True)
class Report:
    """All findings on a dataset, the worst first.

    Attributes:
        rows: how many rows each split has.
        findings: sorted by severity, then in the order of the checks.
        splits: the hashes and lengths of each split, by name.
        forms: how the rows of each split are read, in words.
    """

    rows: dict[str, int]
    findings: list[Finding]
    splits: Mapping[str, SplitContents] = field(default_factory=dict, repr=False)
    forms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = {id: (SEVERITIES.index(check.severity), place) for place, (id, check) in enumerate(CHECKS.items())}
        self.findings.sort(key=lambda finding: order[finding.id])

    def at_least(self, severity: Severity) -> list[Finding]:
        """Return the findings of this severity or worse."""
        return [f for f in self.findings if SEVERITIES.index(f.severity) <= SEVERITIES.index(severity)]

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON: rows and lengths of each split, and the findings."""
        lengths = {name: length_numbers(split.lengths, split.unit) for name, split in self.splits.items()}
        splits = {
            name: {"rows": count, "form": self.forms.get(name), "lengths": lengths.get(name)}
            for name, count in self.rows.items()
        }
        counts = {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES}
        return {"splits": splits, "counts": counts, "findings": [finding.as_dict() for finding in self.findings]}

    def lines(self) -> list[str]:
        """Return errors and warnings for a log, one line each."""
        return [
            f"{f.severity} {f.id} in {f.split}: {f.count:,} row{'s' * (f.count != 1)}"
            + (f" ({f.first_rows})" if f.rows else "")
            + f", {f.note}."
            for f in self.at_least("warning")
        ]
