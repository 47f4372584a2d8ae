"""One loaded base model for several runs that each train an adapter on it."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from ..._compat.trl import loading_policies_with


class SharedBase:
    """Loads a base model once, and gives each run a copy that shares its weights.

    Only the weights are shared. Modules, buffers and configs are copied, so what a trainer changes in one of them (a
    patched forward, hooks, an adapter) doesn't reach the next run. The weights must not be trained: use it for runs
    with `use_peft` in one process.

    A model that draws random numbers while it is loaded (for weights that its files lack) depends on the run's seed.
    It is loaded anew for every run.

    Example:
        >>> base = SharedBase()
        >>> with base.in_use():  # doctest: +SKIP
        ...     trainer = PreferenceTrainer("HuggingFaceTB/SmolLM2-135M", args, train_dataset=rows, peft_config=lora)
    """

    def __init__(self) -> None:
        self._key: Any = None
        self._model: Any = None
        self._trainable: dict[str, bool] = {}

    def in_use(self) -> AbstractContextManager[None]:
        """Give trainers that are made inside the block copies of this base, where they ask for the same model."""
        return loading_policies_with(self._load)

    def _load(self, create: Callable[..., Any], path: str, **options: Any) -> Any:
        key = (path, repr(sorted(options.items())))
        if key != self._key:
            self._key = self._model = None
            gc.collect()  # a trainer is a circle of objects, and holds the former model
            before = _random_state()
            model = create(path, **options)
            if _random_state() != before:
                return model
            self._key, self._model = key, model
            self._trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
        for name, weight in self._model.named_parameters():
            weight.requires_grad_(self._trainable[name])  # as a freshly loaded model has it; an adapter froze it
        return copy.deepcopy(self._model, {id(weight): weight for weight in self._model.parameters()})


def _random_state() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy_state = np.random.get_state(legacy=False)
    return (
        random.getstate(),
        repr(numpy_state),
        *(state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)),
    )
