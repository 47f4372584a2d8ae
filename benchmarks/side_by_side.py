"""What the benchmarks share that put TRL's trainer and ours side by side on the same token ids."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOTrainer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GPU = torch.cuda.is_available()


class TokenIdsDPOTrainer(DPOTrainer):
    """TRL's trainer on rows that are token ids already; nothing else is changed."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class Stopwatch(TrainerCallback):
    """Wall-clock and processor seconds of each optimizer step, until its weights are updated.

    Args:
        with_collating: whether a step's time includes fetching and collating its batch.
    """

    def __init__(self, *, with_collating: bool) -> None:
        self.with_collating = with_collating
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def _now(self) -> tuple[float, float]:
        if GPU:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = self._now()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if not self.with_collating:
            self._start = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = self._now()
        self.seconds.append(now[0] - self._start[0])
        self.cpu_seconds.append(now[1] - self._start[1])
        self._start = now


def no_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a padding token and no other, for rows that are token ids already."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")


def as_pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all pairs of each ranking, best response first, as tokenized rows of TRL's trainer."""
    return [
        {"prompt_ids": row["prompt_ids"], "chosen_ids": chosen, "rejected_ids": rejected}
        for row in rows
        for chosen, rejected in itertools.combinations(row["completion_ids"], 2)
    ]


def peak_resident_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    # ru_maxrss would be inherited from the parent process.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
