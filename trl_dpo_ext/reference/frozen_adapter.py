"""The reference as a second adapter of the policy: a frozen copy of the trained one, which TR-DPO moves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from .._compat.deepspeed import gathered

TRAINED = "default"
FROZEN = "ref"


def changes_nothing(model: Any) -> bool:
    """Whether a new LoRA adapter leaves the model unchanged, so that training starts from the model without it.

    Most adapters start with a zero factor. PiSSA, OLoRA, CorDA, LoftQ and the like don't: they move a part of the base
    weights into the adapter, so the base with adapters off is a model that nobody trained.
    """
    for module in model.modules():
        for zero in ("lora_B", "lora_embedding_A"):
            weights = getattr(module, zero, {})
            if TRAINED in weights and any(weight.any() for weight in _tensors(weights[TRAINED])):
                return False
    return True


def freeze_copy(model: Any) -> None:
    """Add the adapter `ref` to a PEFT model: a frozen copy of `default` with its current weights and dtypes."""
    config = copy.deepcopy(model.peft_config[TRAINED])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # other kinds would change the base weights again
    model.add_adapter(FROZEN, config)
    for _, trained, frozen in _pairs(model):
        frozen.data = trained.data.clone()
        frozen.requires_grad_(False)


@torch.no_grad()
def mix(model: Any, alpha: float) -> None:
    """Move the copy towards the trained adapter: theta_ref <- alpha theta + (1 - alpha) theta_ref.

    TR-DPO (arXiv 2404.09656) mixes the trainable parameters. With LoRA these are the factors A and B, so for alpha < 1
    the reference isn't the mix of the products B A, which would have twice the rank. alpha = 1 is exact.
    """
    pairs = [(trained, frozen) for _, trained, frozen in _pairs(model) if trained.is_floating_point()]
    with gathered([weight for pair in pairs for weight in pair], to_write=True):
        for trained, frozen in pairs:
            frozen.lerp_(trained, alpha)


class MoveAdapter(TrainerCallback):
    """TR-DPO with adapters: calls `mix` every `ref_model_sync_steps` optimizer steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Move the reference every `ref_model_sync_steps` steps."""
        if state.global_step % args.ref_model_sync_steps == 0:
            mix(model, args.ref_model_mixup_alpha)


def state(model: Any) -> dict[str, Tensor]:
    """Return the copy's tensors by name. They share memory with the model."""
    return {name: frozen.detach() for name, _, frozen in _pairs(model)}


@contextmanager
def saves_no_copy(model: Any) -> Iterator[None]:
    """While open, `model.save_pretrained` leaves out the copy and writes the user's adapters only."""
    mine = [name for name in model.peft_config if name != FROZEN]
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=mine)
    try:
        yield
    finally:
        del model.save_pretrained


def _pairs(model: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        # The adapter's name may also come last, as in `lora_embedding_A.default`.
        twin = ".".join(FROZEN if part == TRAINED else part for part in name.split("."))
        if twin != name and twin in tensors:
            yield twin, tensor, tensors[twin]


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.parameters())
