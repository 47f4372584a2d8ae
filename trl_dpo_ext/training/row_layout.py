"""Which rows a trainer's model computes: decided once, and given to its collator."""

from __future__ import annotations

import itertools
import logging
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import TrainerCallback

from ..modeling.compact_head import add_compact_head
from ..modeling.layout import PromptGroup
from ..modeling.quantized import keep_4bit_weights
from ..modeling.row_plan import plan_rows

logger = logging.getLogger(__name__)

_SHARING: dict[str, Any] = {"auto": "auto", "true": True, "false": False}


def set_row_layout(trainer: Any, model: nn.Module, full_precision: bool) -> None:
    """Run one group through plain and through shared rows, compare, and lay out all batches accordingly.

    Args:
        trainer: a `PreferenceTrainer`; its models get the compact head, its collator the layout.
        model: its model as it will be run, wrapped or not.
        full_precision: see `plan_rows`.
    """
    for patched in (trainer.model, trainer.ref_model):
        if patched is not None:
            base = trainer.accelerator.unwrap_model(patched)
            keep_4bit_weights(base)
            add_compact_head(base.get_base_model() if is_peft_model(base) else base)
    rows = itertools.islice(trainer.train_dataset, 8)
    layout = plan_rows(
        model,
        trainer.model.config,
        [PromptGroup(row["prompt_ids"], row["completion_ids"]) for row in rows],
        prefix_sharing=_SHARING[str(trainer.args.prefix_sharing)],
        packing=trainer.args.packing,
        last_tokens=trainer.aux_loss_enabled,
        full_precision=full_precision,
    )
    if trainer.is_world_process_zero():
        log = logger.info if layout.share or trainer.args.prefix_sharing == "false" else logger.warning
        log(layout.note)
    # The same collator: under FSDP the dataloader holds it already.
    trainer.data_collator.layout = layout


class PlanRowsWhenWrapped(TrainerCallback):
    """Sets the layout when `train` has wrapped the model: sharded weights can't run before."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called by transformers."""
        self.trainer._plan_rows(self.trainer.model_wrapped, full_precision=False)
