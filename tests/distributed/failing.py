"""What goes wrong on process 1 only: imported by the recipes of `test_failing_rank.py` (`import_module`)."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any

import torch

from trl_dpo_ext.data import DataError
from trl_dpo_ext.run import training_run

WHAT = os.environ.get("FAILS", "")  # not set where the examples in docstrings are looked for
SECOND = os.environ.get("RANK") == "1"


def reward(prompts: list[str], completions: list[str]) -> list[float]:
    if SECOND and WHAT == "reward":
        raise KeyError("no such word")
    return [float(len(text)) for text in completions]


def _with_bad_row(*args: Any, load: Any = training_run.load_recipe_splits) -> Any:
    splits = load(*args)
    rows = splits["train"].to_list()
    rows[3]["prompt"] = None
    return {**splits, "train": splits["train"].from_list(rows)}


def _no_room(value: Any, file: Any, *args: Any, save: Any = torch.save, **kwargs: Any) -> None:
    if "rng_state_1" in str(file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))
    save(value, file, *args, **kwargs)


if SECOND:
    if WHAT == "row":
        training_run.load_recipe_splits = _with_bad_row
    elif WHAT == "disk":
        torch.save = _no_room
    elif WHAT == "deaf":
        raise DataError("only process 1 has this.")
elif WHAT == "deaf":  # no signal reaches process 0, as if it waited for its GPU
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
