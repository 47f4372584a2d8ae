"""Pushes a run's folder to the Hub with a model card, and loads, merges and shares what runs leave.

`hub.merge`, `hub.adapter_loading` and `hub.share_reference_cache` load torch, which a push doesn't need, so import them
directly.
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
