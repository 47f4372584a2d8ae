"""From a run's folder to the Hub and back: merge an adapter, push it, and the card that says what was trained."""

from .merge import MergeError, merge_adapter
from .run import Run, RunError, TrainedBase, read_run

__all__ = ["MergeError", "Run", "RunError", "TrainedBase", "merge_adapter", "read_run"]
