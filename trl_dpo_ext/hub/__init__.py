"""From a run's folder to the Hub and back: merge an adapter, push it, and the card that says what was trained."""

from .card import make_card, write_card
from .merge import MergeError, merge_adapter
from .push import PushError, push_run
from .run import Run, RunError, TrainedBase, read_run
from .training_record import training_record

__all__ = [
    "MergeError",
    "PushError",
    "Run",
    "RunError",
    "TrainedBase",
    "make_card",
    "merge_adapter",
    "push_run",
    "read_run",
    "training_record",
    "write_card",
]
