"""The linter: finds faults in a preference dataset that training would not report (docs/lint.md)."""

from .findings_report import CHECKS, Finding, Report
from .length_plot import plot_lengths
from .scan import lint_splits, log_findings

__all__ = ["CHECKS", "Finding", "Report", "lint_splits", "log_findings", "plot_lengths"]
