"""The linter: what makes a preference dataset bad without an error, with row numbers and what to do (docs/lint.md)."""

from .plot import plot_lengths
from .report import CHECKS, Finding, Report
from .scan import lint_splits, log_findings

__all__ = ["CHECKS", "Finding", "Report", "lint_splits", "log_findings", "plot_lengths"]
