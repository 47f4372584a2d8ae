"""From a run's folder to the Hub and back: push it, with a card that says what was trained.

`hub.merge` and `hub.share_reference_cache` are imported by themselves: they load torch, which a push needs none of.
"""

from .model_card import make_card, write_card
from .push import PushError, push_run
from .pushed_files import hub_id
from .run_folder import Run, RunError, TrainedBase, read_run
from .training_record import training_record

__all__ = [
    "PushError",
    "Run",
    "RunError",
    "TrainedBase",
    "hub_id",
    "make_card",
    "push_run",
    "read_run",
    "training_record",
    "write_card",
]
