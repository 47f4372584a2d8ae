"""Stop a run that learns nothing or is broken, and name the rows: no weight changes, or NaN or infinity appears."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import TrainingError
from .checkpoint import newest_complete
from .likelihood_displacement import displacement_warning, find_displacement

logger = logging.getLogger(__name__)

_CHUNK_ELEMENTS = 1 << 24  # elements processed at a time, to avoid a copy of a whole large weight
_INTEGER_DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROWS_SHOWN = 50
_NO_GRADIENT_ADVICE = (
    "Check gradient checkpointing over a frozen base model (set use_reentrant: false, or call "
    "model.enable_input_require_grads()), LoRA target_modules that the forward pass doesn't use, and detached layers."
)
_TOO_COARSE_ADVICE = (
    "Check for 16-bit weights, which are too coarse for a small learning rate (train in float32 with bf16 autocast), "
    "and for an optimizer with other weights than the model's."
)


class TrainingGuard(TrainerCallback):
    """Checks the loss of each micro-batch, the gradients of each step, and the weights after the first step.

    All processes see the same sums, so they stop together. The guard raises before the weights are updated (except
    under DeepSpeed, which updates them before the guard can check), and no checkpoint is written afterwards.

    Weights are compared by one checksum per tensor: the exact sum of its elements' bit patterns as integers. This costs
    one pass over the weights before training and one after the first step. The first step is the first one that has a
    learning rate above 0, isn't skipped by fp16 loss scaling, and compares responses: where all are tied, a loss may
    have no gradient while the policy is the reference. A run that ends before such a step has learned nothing either.

    Args:
        trainer: the `PreferenceTrainer` this belongs to.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._initial_checksums: dict[str, int] | None = None  # None once a weight has changed
        self._batches: list[dict[str, Tensor]] = []
        self._loss = self._norm = self._rate = 0.0
        self._has_gradients: bool | None = False  # None: unknown, since DeepSpeed keeps none after a step
        self._first_step = 0
        self._waited_for = ""  # why no step so far could show whether the run learns
        self._warned = False

    # Each step

    def begin_step(self, batches: list[dict[str, Tensor]]) -> None:
        """Remember the micro-batches of the next optimizer step, so that an error can name their rows."""
        self._batches, self._loss = batches, 0.0

    def check_loss(
        self,
        losses: Tensor,
        batch: dict[str, Tensor],
        nonfinite: float,
        magnitude: float,
        culprits: Callable[[], list[dict[str, Tensor]]],
    ) -> None:
        """Check the loss of a training micro-batch before its gradients are computed.

        Args:
            losses: [B] loss of each of this process's prompts.
            batch: the micro-batch; its `rows` [B] are read.
            nonfinite: number of processes whose loss isn't finite.
            magnitude: sum over the processes of the loss's absolute value.
            culprits: returns the rows behind a loss that isn't finite, as micro-batches with nothing but `rows`.

        Raises:
            TrainingError: a loss isn't finite, or doesn't depend on a trainable weight.
        """
        self._loss += magnitude
        if not losses.requires_grad:  # backward() would fail without naming the cause
            self._stop("the loss depends on no trainable weight", [batch], _NO_GRADIENT_ADVICE)
        if not nonfinite:
            return
        self._stop(
            "the loss is NaN or infinite",
            culprits(),
            "Check these rows (very long or very unlikely responses), the learning rate, fp16 (bf16 has a larger "
            "range), and cached reference log-probs.",
        )

    def check_gradients(self, model: nn.Module, norm: Any) -> Any:
        """Check the gradient norm of a step before the optimizer uses the gradients, and return it.

        On an overflow, fp16 loss scaling skips the step and halves the scale. Overflows are ignored until the loss
        scale reaches 1.

        Raises:
            TrainingError: the norm isn't finite.
        """
        if norm is None or self.trainer.is_deepspeed_enabled:
            return norm
        self._norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if self._initial_checksums is not None:
            self._has_gradients = any(p.grad is not None for p in model.parameters())
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        if not math.isfinite(self._norm) and (scaler is None or scaler.get_scale() <= 1):
            self._stop(
                f"the loss is finite, but the norm of its gradients is {self._norm}",
                self._batches,
                "Check the learning rate, fp16 (bf16 has a larger range), attention rows that are masked completely, "
                "and the derivative of a custom loss.",
            )
        return norm

    # The first step

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record the checksums of the initial weights.

        Raises:
            TrainingError: no weight is trainable.
        """
        self._first_step, self._waited_for = state.global_step, ""
        self._has_gradients = None if self.trainer.is_deepspeed_enabled else False
        self._initial_checksums = {name: _checksum(p) for name, p in _trainable_weights(model)}
        if not self._initial_checksums:
            raise TrainingError(
                "No weight is trainable: requires_grad is False for all of them. Check peft_config and frozen layers. "
                "To continue training an adapter, load it with PeftModel.from_pretrained(..., is_trainable=True)."
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Record the learning rate of the step."""
        self._rate = _learning_rate(optimizer)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Compare the weights with the initial ones until one has changed. Runs before anything is logged or saved.

        Raises:
            TrainingError: no weight has changed, or one is no longer finite.
        """
        # accelerate doesn't notice when a fused optimizer skips a step; a non-finite norm reveals it.
        skipped = self.trainer.accelerator.optimizer_step_was_skipped or not math.isfinite(self._norm)
        if self._initial_checksums is None:
            return
        if self._rate == 0 or skipped:
            self._waited_for = "the learning rate was 0" if self._rate == 0 else "fp16 loss scaling skipped the steps"
            return
        broken = [name for name, p in _trainable_weights(model) if not _is_finite(p)]
        moved = any(_checksum(p) != self._initial_checksums[name] for name, p in _trainable_weights(model))
        # A process may hold only a part of the weights.
        counts = torch.tensor([moved, len(broken), any(map(_compares, self._batches))], device=self.trainer.args.device)
        any_moved, any_broken, compares = self.trainer.accelerator.reduce(counts, reduction="sum").tolist()
        if any_broken:
            self._stop(
                f"the gradients were finite (norm {self._norm:.3g}), but the update produced NaN or infinity in "
                f"{any_broken} of {len(self._initial_checksums)} trainable tensors ({', '.join(broken[:3])}, ...)",
                self._batches,
                f"Check the learning rate ({self._rate:g}), the optimizer, and fp16 weights.",
                step_completed=True,
            )
        no_gradient = bool(self._has_gradients) and self._norm == 0  # weight decay changes weights without a gradient
        if any_moved and not no_gradient:
            self._initial_checksums = None
            return
        if self._loss == 0:  # e.g. a hinge loss that these rows already satisfy
            self._waited_for = "the loss was 0"
            return
        if no_gradient and not compares:
            self._waited_for = "all responses were tied, and had no gradient"
            return
        coarse = all(p.element_size() < 4 for _, p in _trainable_weights(model))
        if coarse and _learning_rate(optimizer) > self._rate:  # updates during warmup may be too small for 16 bits
            self._waited_for = f"the weights are too coarse for the learning rate, which only reached {self._rate:g}"
            return
        if self._has_gradients is None:
            cause = "whether they had gradients is unknown under DeepSpeed"
            advice = f"{_NO_GRADIENT_ADVICE} {_TOO_COARSE_ADVICE}"
        elif not self._has_gradients:
            cause, advice = "none of them received a gradient", _NO_GRADIENT_ADVICE
        elif no_gradient:
            cause = "all their gradients are 0, but the loss isn't"
            advice = (
                "Check for fp16 gradients that underflow (use bf16 or a larger loss scale), a loss that is flat at its "
                "starting point, and identical responses."
            )
        else:
            cause = f"they had gradients (norm {self._norm:.3g})"
            advice = _TOO_COARSE_ADVICE
        self._stop(
            f"none of the {len(self._initial_checksums)} trainable tensors changed at learning rate {self._rate:g}; "
            f"{cause}",
            self._batches,
            advice,
            step_completed=True,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a run whose steps all had a reason not to change any weight.

        Raises:
            TrainingError: no weight has changed since the start. A resumed run may end so: its earlier steps count.
        """
        stopped_early = state.global_step < state.max_steps  # by SIGTERM, or by a callback
        if self._initial_checksums is None or self._first_step or not state.global_step or stopped_early:
            return
        self._stop(
            f"the run ends, and none of the {len(self._initial_checksums)} trainable tensors ever changed: "
            f"{self._waited_for} in the last step, and no other step changed one",
            self._batches,
            "Check warmup_steps and lr_scheduler_type against the number of steps, ties in the data, and whether the "
            "loss can still fall.",
            step_completed=True,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Warn once if the log-probs of chosen and rejected responses fall together."""
        if self._warned or not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        objective = self.trainer.objective
        scale = objective.reward_scale if objective.reads_reference else None
        if (found := find_displacement(state.log_history, scale)) is not None:
            self._warned = True
            logger.warning(displacement_warning(found))

    def _stop(self, problem: str, batches: list[dict[str, Tensor]], advice: str, step_completed: bool = False) -> None:
        """Raise a `TrainingError` that names the rows of all processes. Every process must call this."""
        trainer = self.trainer
        rows = _row_numbers(batches) or _row_numbers(self._batches)
        where = (
            f"Rows of the training dataset: {', '.join(map(str, rows[:_ROWS_SHOWN]))}"
            if rows
            else "The rows are unknown"
        )
        more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
        saved = newest_complete(trainer.args.output_dir)
        checkpoint = f"The last complete checkpoint is {saved}." if saved else "There is no checkpoint yet."
        step = trainer.state.global_step + (not step_completed)
        raise TrainingError(f"Step {step}: {problem}. {where}{more}. {checkpoint} {advice}", rows)


def _row_numbers(batches: list[dict[str, Tensor]]) -> list[int]:
    """Return the row numbers of the batches of all processes; empty if the dataset has no row numbers."""
    return sorted(set(gather_object([row for batch in batches if "rows" in batch for row in batch["rows"].tolist()])))


def _compares(batch: dict[str, Tensor]) -> bool:
    """Return whether a micro-batch has a label, a single response, or responses of one prompt that aren't tied."""
    ranks, mask = batch["ranks"], batch["mask"]
    if "response_labels" in batch and bool((batch["response_labels"] != 0).any()):
        return True
    best, worst = (ranks.masked_fill(~mask, fill) for fill in (ranks.max(), ranks.min()))
    return bool(((best.min(1).values < worst.max(1).values) | (mask.sum(1) < 2)).any())


def _trainable_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return this process's part of the trainable weights (DTensor: FSDP; `ds_tensor`: DeepSpeed ZeRO-3)."""
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            held = getattr(p, "ds_tensor", p).detach()
            found.append((name, held.to_local() if hasattr(held, "to_local") else held))
    return found


def _checksum(p: Tensor) -> int:
    bits = p.reshape(-1).view(_INTEGER_DTYPES[p.element_size()])
    return sum(int(part.sum(dtype=torch.int64)) for part in bits.split(_CHUNK_ELEMENTS))


def _is_finite(p: Tensor) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in p.reshape(-1).split(_CHUNK_ELEMENTS))


def _learning_rate(optimizer: Any) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)
