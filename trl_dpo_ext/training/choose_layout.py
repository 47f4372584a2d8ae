"""Choose the row layout of a trainer's batches, once, for the collator."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import TrainerCallback

from ..modeling.compact_head import add_compact_head
from ..modeling.head_check import check_head
from ..modeling.layout import PromptGroup
from ..modeling.quantized import keep_4bit_weights
from ..modeling.row_plan import RowLayout, plan_rows

logger = logging.getLogger(__name__)

_SHARING: dict[str, Any] = {"auto": "auto", "true": True, "false": False}


def choose_layout(trainer: Any, model: nn.Module, full_precision: bool = True) -> RowLayout:
    """Check shared rows against plain rows on one group, and return the layout for all batches.

    Args:
        trainer: a `PreferenceTrainer`. Its models get the compact head.
        model: the trainer's model as the forward pass will use it, wrapped or not.
        full_precision: see `plan_rows`.
    """
    rows = list(itertools.islice(trainer.train_dataset, 8))
    groups = [PromptGroup(row["prompt_ids"], row["completion_ids"]) for row in rows]
    for patched in (model, trainer.ref_model):
        if patched is not None:
            _add_head(trainer, patched, groups[0])
    layout = plan_rows(
        model,
        trainer.model.config,
        groups,
        prefix_sharing=_SHARING[str(trainer.args.prefix_sharing)],
        packing=trainer.args.packing,
        last_tokens=trainer.aux_loss_enabled,
        full_precision=full_precision,
    )
    if trainer.is_world_process_zero():
        log = logger.info if layout.share or trainer.args.prefix_sharing == "false" else logger.warning
        log(layout.note)
    return layout


def _add_head(trainer: Any, model: nn.Module, group: PromptGroup) -> None:
    base = trainer.accelerator.unwrap_model(model)
    keep_4bit_weights(base)
    base = base.get_base_model() if is_peft_model(base) else base
    add_compact_head(base)
    router = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
    if (problem := check_head(model, trainer.model.config, group, router)) is not None:
        add_compact_head(base, own_head=True)
        if trainer.is_world_process_zero():
            logger.info("%s, so log-probs are computed from the model's own logits, which takes more memory.", problem)


class RunWhenWrapped(TrainerCallback):
    """Does what runs a sharded model, which can't run before `train` has wrapped it.

    Args:
        trainer: a `PreferenceTrainer`; it gets its layout.
        then: called once, afterwards.
    """

    def __init__(self, trainer: Any, then: Callable[[], None]) -> None:
        self.trainer, self._then = trainer, then
        self._done = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Change the existing collator: the dataloader already holds it."""
        if not self._done:
            self._done = True
            self.trainer.data_collator.layout = choose_layout(self.trainer, self.trainer.model_wrapped, False)
            self._then()
