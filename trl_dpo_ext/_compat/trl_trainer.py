"""TRL's trainer and config, with the private methods and attributes that we use behind public names.

`PreferenceTrainer` overrides the hooks below, never a private name of TRL or transformers. The contract test
(tests/test_trl_contract.py) covers each private name in this file.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trl import DPOConfig, DPOTrainer


@dataclass
class HookedConfig(DPOConfig):
    """`DPOConfig` that accepts `loss_kwargs` as JSON text, as transformers does for its own dict fields."""

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "loss_kwargs"]  # noqa: RUF012, as in TRL

    def __post_init__(self) -> None:
        # transformers 5.23 warns of the former names, and TRL's default has one of them. Both names go on working.
        for name in ("checkpointing", "checkpointing_kwargs"):
            if getattr(self, f"activation_{name}", self) is None:
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
        super().__post_init__()


class HookedTrainer(DPOTrainer):
    """`DPOTrainer` with public hooks.

    Attributes:
        columns: columns of the tokenized dataset that the collator reads.
    """

    _tag_names = ["trl", "dpo", "trl-dpo-ext"]  # noqa: RUF012, as in TRL
    columns: Sequence[str] = ()
    _evaluation_prefix: str | None = None
    _last_step: tuple[float | None, float | None] = (None, None)  # gradient norm and learning rate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # PEFT reads the former name, whatever the user sets.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            super().__init__(*args, **kwargs)

    # Hooks

    def prepare_dataset(self, dataset: Any, name: str) -> Any:
        """Return the tokenized dataset. DPOTrainer calls this for each of its datasets."""
        raise NotImplementedError

    def check_gradients(self, model: nn.Module, norm: Any) -> Any:
        """Inspect a step's gradient norm before the update, and return it."""
        return norm

    def checkpoint_writer(self, folder: Path) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager around transformers' writing of a checkpoint into `folder`."""
        raise NotImplementedError

    def weights_writer(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager around transformers' writing of weights."""
        return contextlib.nullcontext()

    def random_state_restored(self, new_epoch: bool) -> None:
        """Called when a resumed run has its random state again.

        Args:
            new_epoch: whether the checkpoint is at the end of an epoch, and the next one begins now.
        """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the queued metrics too. DPOTrainer names those of every evaluation "eval_...", whatever its dataset."""
        if self._evaluation_prefix is not None:
            queued = self._metrics["eval"]
            logs.update({f"{self._evaluation_prefix}_{name}": sum(v) / len(v) for name, v in queued.items()})
            queued.clear()
        super().log(logs, start_time)

    @contextlib.contextmanager
    def gradients_incomplete(self, model: nn.Module) -> Iterator[None]:
        """Only accumulate gradients: neither sum them over the processes, nor let DeepSpeed update the weights.

        transformers does so itself for all micro-batches of a step but the last.
        """
        state = self.accelerator.gradient_state
        if not state.sync_gradients:
            yield
            return
        sums_each = state.plugin_kwargs.get("sync_each_batch", False) or self.is_deepspeed_enabled
        state._set_sync_gradients(False)
        try:
            with contextlib.nullcontext() if sums_each else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    # Private methods that call the hooks

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return self.prepare_dataset(dataset, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(self.columns)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self.check_gradients(model, super()._get_grad_norm(model, grad_norm))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with self.checkpoint_writer(folder):
            # DPOTrainer's own method also writes a model card.
            super(DPOTrainer, self)._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self.weights_writer():
            super()._save(output_dir, state_dict)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers trains another step before it sees that a resumed run has reached its end.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.random_state_restored(float(self.state.epoch or 0).is_integer())

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: Any,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: Any = None,
    ) -> None:
        full = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
        self._last_step = None if full is None else float(full), learning_rate
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
        )

    # Public access to private names

    def end_epoch(self) -> None:
        """Log, evaluate and save what is due at the end of an epoch whose steps were trained before a checkpoint."""
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        norm, rate = self._last_step
        self._maybe_log_save_evaluate(
            self._tr_loss, norm, self.model_wrapped, None, self.state.epoch, None, time.time(), learning_rate=rate
        )

    def planned_steps(self) -> int:
        """Return the number of steps of the whole run, as transformers counts them."""
        with torch.random.fork_rng(devices=[]):  # a data loader draws its seed
            return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def evaluate_tokenized(self, dataset: Any, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
        """Evaluate on a tokenized dataset, or on the trainer's own dataset (None or its name).

        This bypasses DPOTrainer.evaluate, which adds reference log-probs to the dataset, or refuses to after the first
        step.

        Returns:
            Metrics by name. Each name begins with `prefix`, so two datasets share none.
        """
        outer, self._evaluation_prefix = self._evaluation_prefix, prefix
        self._metrics["eval"].clear()  # `predict` and failed evaluations leave metrics behind
        try:
            metrics: dict[str, float] = super(DPOTrainer, self).evaluate(dataset, ignore_keys, prefix)
        finally:
            self._evaluation_prefix = outer
        return metrics

    def save_without_push(self, folder: str | None = None) -> None:
        """Save the model. `save_model` would also push it, before the run's record is written."""
        self.save_model(folder, _internal_call=True)

    def queue_metrics(self, mode: str, metrics: dict[str, float], tokens: int) -> None:
        """Queue a batch's metrics for the next log, which averages them.

        Args:
            mode: "train" or "eval".
            metrics: value by metric name.
            tokens: number of tokens computed in this batch, over all processes.
        """
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            # All ranks of a tensor-parallel group compute the same tokens.
            self._total_train_tokens += tokens // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    @property
    def train_tokens(self) -> int:
        """Tokens that the run has computed so far, over all processes."""
        return int(self._total_train_tokens)

    def log_state(self) -> dict[str, Any]:
        """Return the metrics, loss and counters queued for the next log. Every process must call this.

        The loss is the float32 sum over the steps since the last log, as in transformers.
        """
        return {
            "metrics": dict(self._metrics["train"]),
            "train_tokens": self._total_train_tokens,
            "loss": self.accelerator.reduce(self._tr_loss, reduction="mean").item(),
            "last_logged_step": self._globalstep_last_logged,
            "grad_norm": self._last_step[0],
            "learning_rate": self._last_step[1],
        }

    def restore_log_state(self, state: Any) -> None:
        """Restore the result of `log_state`, as attributes of `state`.

        Call it after transformers resets its counters as training starts.
        """
        self._metrics["train"].clear()
        self._metrics["train"].update(state.metrics)
        self._total_train_tokens = state.train_tokens
        self._tr_loss += state.loss
        self._total_loss_scalar = -state.loss  # train_loss averages over this call's steps only
        self._globalstep_last_logged = state.last_logged_step
        self._last_step = state.grad_norm, state.learning_rate
