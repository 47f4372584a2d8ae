"""The evaluation of the policy as training finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ..evaluation import Evaluation
from ..evaluation.frontier.frontier_callback import random_state_kept
from ..evaluation.sampling.sequence_kl import Reference
from ..training import ConfigError, PreferenceTrainer


class EvaluateFirst(TrainerCallback):
    """Evaluates the policy before the first step, and returns the result when called.

    A policy whose weights are whole is evaluated at once; one that is sharded can't run before `train` has wrapped it.
    A run that goes on from a checkpoint has other weights by then, so its reference, where the run began, is evaluated.

    Args:
        trainer: the run's trainer.
        evaluate: takes a model, and the reference of its KL or None.
        reference: as in `sequence_kl`; None skips the KL.
    """

    def __init__(
        self,
        trainer: PreferenceTrainer,
        evaluate: Callable[[Any, Reference | None], Evaluation],
        reference: Reference | None,
    ) -> None:
        self.trainer, self._evaluate, self._reference = trainer, evaluate, reference
        self._result: Evaluation | None = None
        if trainer.weights_are_sharded:
            trainer.add_callback(self)
        else:
            self._result = evaluate(trainer.model, reference)

    def __call__(self) -> Evaluation:
        """Return the result. With sharded weights, training must have begun."""
        assert self._result is not None
        return self._result

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate a sharded policy.

        Raises:
            ConfigError: a resumed run has no model in memory that is as training began.
        """
        if self._result is not None:
            return
        trainer = self.trainer
        with random_state_kept():
            if state.global_step == 0:
                self._result = self._evaluate(trainer.model, self._reference)
            elif trainer.has_reference:
                with trainer.reference() as start:
                    self._result = self._evaluate(start, self._reference)
            else:
                raise ConfigError(
                    "reward compares the model with the one that training began with, and a resumed run with sharded "
                    "weights has none in memory. Remove reward, and evaluate the two models afterwards with "
                    "trl-dpo-ext evaluate."
                )
