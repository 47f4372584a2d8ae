"""Shows tokens per second in the progress bar, beside transformers' steps and time left."""

from __future__ import annotations

import time
from typing import Any

from transformers import ProgressCallback, TrainerCallback


class TokenRate(TrainerCallback):
    """Write the tokens per second of the last steps into the bar of `ProgressCallback`, where there is one.

    Args:
        trainer: a `PreferenceTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._marks: list[tuple[float, int]] = []  # time and tokens at the last steps
        self._bar: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start counting."""
        bars = [c for c in self._trainer.callback_handler.callbacks if isinstance(c, ProgressCallback)]
        self._bar = bars[0].training_bar if bars else None
        self._marks = [(time.perf_counter(), self._trainer.train_tokens)]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Show the mean over up to ten steps."""
        self._marks = [*self._marks[-10:], (time.perf_counter(), self._trainer.train_tokens)]
        if self._bar is not None:
            (start, before), (now, after) = self._marks[0], self._marks[-1]
            self._bar.set_postfix_str(f"{(after - before) / max(now - start, 1e-9):,.0f} tokens/s", refresh=False)
