"""Stops a run that learns nothing or has broken, and says where: no weight moves, or NaN and infinity appear."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import TrainingError
from .checkpoint import newest
from .likelihood_displacement import displaced, warning

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24  # elements looked at together, so that a large weight isn't copied whole
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHOWN = 50
_UNREACHED = (
    "Look at gradient checkpointing over a frozen base (use_reentrant: false, or model.enable_input_require_grads()), "
    "at LoRA target_modules that the forward pass doesn't use, and at layers cut from the graph."
)


class TrainingGuard(TrainerCallback):
    """Looks at the loss of each micro-batch, the gradients of each step, and the weights after the first one.

    All processes see the same numbers (sums over them), so they stop together. An error is raised before the weights
    are changed, except that DeepSpeed updates them before anything can look; no checkpoint is written after it.

    The weights are compared by a checksum per tensor, the exact sum of the bit patterns of all its elements as
    integers: it costs one pass over the weights before training and one after the first step. The first step is the
    first with a learning rate above 0 that fp16's loss scaling didn't skip.

    Args:
        trainer: the `PreferenceTrainer` this belongs to.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._before: dict[str, int] | None = None  # until a weight has moved
        self._batches: list[dict[str, Tensor]] = []
        self._loss = self._norm = self._rate = 0.0
        self._has_gradients = False
        self._warned = False

    # Each step

    def begin_step(self, batches: list[dict[str, Tensor]]) -> None:
        """Take the micro-batches of the next optimizer step, whose rows an error names."""
        self._batches, self._loss = batches, 0.0

    def check_loss(self, losses: Tensor, batch: dict[str, Tensor], broken: float, size: float) -> None:
        """Look at a micro-batch of training, before its gradients are computed.

        Args:
            losses: [B] loss of each prompt of this process.
            batch: what was computed; its `rows` [B].
            broken: number of processes whose loss isn't finite.
            size: sum of the loss's absolute values over the processes.

        Raises:
            TrainingError: one isn't finite.
        """
        self._loss += size
        if not losses.requires_grad:  # torch would end the run without a word about the reason
            self._stop("the loss depends on no trainable weight", [batch], _UNREACHED)
        if not broken:
            return
        culprits = {**batch, "rows": batch["rows"][~torch.isfinite(losses)]} if "rows" in batch else batch
        self._stop(
            "the loss is NaN or infinite",
            [culprits],
            "Look at these rows (very long or very unlikely responses), at the learning rate, at fp16 (bf16 has the "
            "range), and at cached reference log-probs.",
        )

    def check_gradients(self, model: nn.Module, norm: Any) -> Any:
        """Look at the norm of a step's gradients, before the optimizer uses them; return it.

        fp16's loss scaling answers an overflow by skipping the step with half the scale. That is let be until the
        scale is 1, where it can't help any more.

        Raises:
            TrainingError: it isn't finite.
        """
        if norm is None or self.trainer.is_deepspeed_enabled:
            return norm
        self._norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if self._before is not None:
            self._has_gradients = any(p.grad is not None for p in model.parameters())
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        if not math.isfinite(self._norm) and (scaler is None or scaler.get_scale() <= 1):
            self._stop(
                f"the loss is finite, but the norm of its gradients is {self._norm}",
                self._batches,
                "Look at the learning rate, at fp16 (bf16 has the range), at attention rows that are masked whole, and "
                "at the derivative of a loss of your own.",
            )
        return norm

    # The first step

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take the checksums.

        Raises:
            TrainingError: nothing is trainable.
        """
        self._before = {name: _checksum(p) for name, p in _trainable(model)}
        if not self._before:
            raise TrainingError(
                "No weight is trainable: requires_grad is False for all. Look at peft_config, at layers you froze, and "
                "(where an adapter is trained further) at PeftModel.from_pretrained(..., is_trainable=True)."
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Take the learning rate that the step will have."""
        self._rate = _learning_rate(optimizer)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Compare the weights with those before training, until one has moved; before anything is logged or saved.

        Raises:
            TrainingError: none has, or one isn't finite any more.
        """
        # A fused optimizer skips the step itself, which accelerate doesn't notice; the norm tells.
        skipped = self.trainer.accelerator.optimizer_step_was_skipped or not math.isfinite(self._norm)
        if self._before is None or self._rate == 0 or skipped:
            return
        broken = [name for name, p in _trainable(model) if not _finite(p)]
        moved = any(_checksum(p) != self._before[name] for name, p in _trainable(model))
        # Each process may hold a part of the weights only.
        counts = torch.tensor([moved, len(broken)], device=self.trainer.args.device)
        any_moved, any_broken = self.trainer.accelerator.reduce(counts, reduction="sum").tolist()
        if any_broken:
            self._stop(
                f"the gradients were finite (norm {self._norm:.3g}), but the update has made NaN or infinity of "
                f"{any_broken} of {len(self._before)} trainable tensors ({', '.join(broken[:3])}, ...)",
                self._batches,
                f"Look at the learning rate ({self._rate:g}), at the optimizer, and at fp16 weights.",
                ended=True,
            )
        no_gradient = self._has_gradients and self._norm == 0  # weight decay moves weights without one
        if any_moved and not no_gradient:
            self._before = None
            return
        if self._loss == 0:  # a hinge that these rows satisfy: nothing to learn from them
            return
        coarse = all(p.element_size() < 4 for _, p in _trainable(model))
        if coarse and _learning_rate(optimizer) > self._rate:  # in warm-up 16 bits may be too coarse for the update
            return
        if not self._has_gradients:
            found, look = "none has received a gradient", _UNREACHED
        elif no_gradient:
            found = "all their gradients are 0, though the loss isn't"
            look = (
                "Look at fp16 gradients that underflow (use bf16, or a larger loss scale), at a loss that is flat "
                "where it starts, and at responses that are the same."
            )
        else:
            found = f"they had gradients (norm {self._norm:.3g})"
            look = (
                "Look at weights in 16 bits, which are too coarse for a small learning rate (train in float32 with "
                "bf16 autocast), and at an optimizer that was given other weights than the model's."
            )
        self._stop(
            f"none of the {len(self._before)} trainable tensors has moved at learning rate {self._rate:g}; {found}",
            self._batches,
            look,
            ended=True,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Warn once where chosen and rejected fall together."""
        if self._warned or not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        objective = self.trainer.objective
        scale = objective.reward_scale if objective.reads_reference else None
        if (found := displaced(state.log_history, scale)) is not None:
            self._warned = True
            logger.warning(warning(found))

    def _stop(self, found: str, batches: list[dict[str, Tensor]], look: str, ended: bool = False) -> None:
        """Raise with the rows of all processes; all of them come here."""
        trainer = self.trainer
        rows = _rows(batches) or _rows(self._batches)
        where = f"Rows of the training dataset: {', '.join(map(str, rows[:_SHOWN]))}" if rows else "Rows unknown"
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        saved = newest(trainer.args.output_dir)
        kept = f"The last whole checkpoint is {saved}." if saved else "No checkpoint had been written yet."
        step = trainer.state.global_step + (not ended)
        raise TrainingError(f"Step {step}: {found}. {where}{more}. {kept} {look}", rows)


def _rows(batches: list[dict[str, Tensor]]) -> list[int]:
    """The numbers of the rows in the batches of all processes; empty where the dataset has none."""
    return sorted(set(gather_object([row for batch in batches if "rows" in batch for row in batch["rows"].tolist()])))


def _trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The trainable weights as far as this process holds them (DTensor: FSDP; `ds_tensor`: DeepSpeed ZeRO-3)."""
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            held = getattr(p, "ds_tensor", p).detach()
            found.append((name, held.to_local() if hasattr(held, "to_local") else held))
    return found


def _checksum(p: Tensor) -> int:
    bits = p.reshape(-1).view(_INTEGERS[p.element_size()])
    return sum(int(part.sum(dtype=torch.int64)) for part in bits.split(_CHUNK))


def _finite(p: Tensor) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in p.reshape(-1).split(_CHUNK))


def _learning_rate(optimizer: Any) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)
