"""What a check of the linter is, and the checks that reading a row answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..data_error import FaultReason

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Check:
    """Something the linter looks for.

    Attributes:
        id: stable name, for CI and docs.
        severity: "error" can't or mustn't be trained on, "warning" costs quality, "info" is worth a look.
        advice: what to do.
        run: the function that looks for it; None where reading the row finds it.
    """

    id: str
    severity: Severity
    advice: str
    run: Callable[..., Any] | None = None


def check(to: list[Check], id: str, severity: Severity, advice: str) -> Callable[[Any], Any]:
    """Return a decorator that adds a function to a list of checks."""

    def add(function: Any) -> Any:
        to.append(Check(id, severity, advice, function))
        return function

    return add


# Losses that read ties train on rows that are all tied, so those are no error.
READING_CHECKS = [
    Check(reason.check_id, "warning" if reason is FaultReason.ALL_TIED else "error", reason.advice)
    for reason in FaultReason
]
