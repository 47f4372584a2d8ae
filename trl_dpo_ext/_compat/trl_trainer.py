"""TRL's trainer and config with the private methods and attributes that we need under public names.

`PreferenceTrainer` overrides the hooks below and never a private name of TRL's or transformers'. The contract test
(tests/test_trl_contract.py) checks each private name that stands here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from trl import DPOConfig, DPOTrainer


@dataclass
class HookedConfig(DPOConfig):
    """`DPOConfig` whose `loss_kwargs` may be given as JSON text, as transformers allows for its own mappings."""

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "loss_kwargs"]  # noqa: RUF012, as in TRL


class HookedTrainer(DPOTrainer):
    """`DPOTrainer` with hooks.

    Attributes:
        columns: of the tokenized dataset that the collator reads.
    """

    _tag_names = ["trl", "dpo", "trl-dpo-ext"]  # noqa: RUF012, as in TRL
    columns: Sequence[str] = ()

    # Hooks

    def prepare_dataset(self, dataset: Any, name: str) -> Any:
        """Return a tokenized dataset. DPOTrainer calls this for each dataset that it is given."""
        raise NotImplementedError

    def check_gradients(self, model: nn.Module, norm: Any) -> Any:
        """Look at the norm of a step's gradients before the update, and return it."""
        return norm

    def checkpoint_writer(self, folder: Path) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which transformers writes a checkpoint into `folder`."""
        raise NotImplementedError

    def weights_writer(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which transformers writes weights."""
        return contextlib.nullcontext()

    # Where the hooks are called

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return self.prepare_dataset(dataset, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(self.columns)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self.check_gradients(model, super()._get_grad_norm(model, grad_norm))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with self.checkpoint_writer(folder):
            # DPOTrainer would write a model card first.
            super(DPOTrainer, self)._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self.weights_writer():
            super()._save(output_dir, state_dict)

    # Private names that others read

    def evaluate_tokenized(self, dataset: Any, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
        """Evaluate on a tokenized dataset, or on the trainer's own (None, or its name).

        DPOTrainer.evaluate would store reference log-probs in the dataset, or refuse to after the first step.
        """
        metrics: dict[str, float] = super(DPOTrainer, self).evaluate(dataset, ignore_keys, prefix)
        return metrics

    def save_without_push(self, folder: str | None = None) -> None:
        """Save the model; `save_model` would push it too, before its record is written."""
        self.save_model(folder, _internal_call=True)

    def log_later(self, mode: str, metrics: dict[str, float], tokens: int) -> None:
        """Keep a batch's metrics until the next log, which takes their mean.

        Args:
            mode: "train" or "eval".
            metrics: by name.
            tokens: computed in this batch, over all processes.
        """
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            # The ranks of a tensor-parallel group compute the same tokens.
            self._total_train_tokens += tokens // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def log_state(self) -> dict[str, Any]:
        """Return what is kept for the next log; every process calls this.

        The loss is summed over the steps since the last log, in float32 as transformers sums it.
        """
        return {
            "metrics": dict(self._metrics["train"]),
            "train_tokens": self._total_train_tokens,
            "loss": self.accelerator.reduce(self._tr_loss, reduction="mean").item(),
            "last_logged_step": self._globalstep_last_logged,
        }

    def restore_log_state(self, state: dict[str, Any]) -> None:
        """Set it again, after transformers has set its counters to 0 at the beginning of training."""
        self._metrics["train"].clear()
        self._metrics["train"].update(state["metrics"])
        self._total_train_tokens = state["train_tokens"]
        self._tr_loss += state["loss"]
        self._total_loss_scalar = -state["loss"]  # not of this call's steps
        self._globalstep_last_logged = state["last_logged_step"]
