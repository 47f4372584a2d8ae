"""Undocumented TRL names. tests/test_trl_contract.py says what breaks without each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from trl import DPOConfig
from trl.kernels import chunked_logprob as _head
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer import dpo_trainer as _dpo_trainer
from trl.trainer import utils as _utils
from trl.trainer.utils import (
    FusedCausalLMOutput,
    add_fused_lm_head,
    create_model_from_path,
    disable_dropout_in_model,
    get_config_model_id,
    use_adapter,
)

__all__ = [
    "FusedCausalLMOutput",
    "add_fused_lm_head",
    "head_as_on_a_gpu",
    "load_processing_class",
    "load_reference",
    "loading_policies_with",
    "plain_dpo_config",
    "prepare_reference",
    "run_fused_head",
    "text_tokenizer",
    "use_adapter",
]

# Fields that DPOTrainer.__init__ checks against its own list of losses, with TRL's defaults. PreferenceConfig has
# already checked the user's values.
_LOSS_FIELDS: dict[str, Any] = {
    field.name: field.default if field.default_factory is MISSING else field.default_factory()
    for field in fields(DPOConfig)
    if field.name in ("loss_type", "loss_weights", "beta", "label_smoothing", "f_divergence_type")
} | {"enable_jit_checkpoint": False}  # PreferenceTrainer handles SIGTERM itself, see StopOnSigterm


@contextmanager
def plain_dpo_config(args: Any, **changes: Any) -> Iterator[None]:
    """Make `args` look like plain DPO inside the block, so that `DPOTrainer.__init__` accepts it.

    Args:
        args: the config.
        **changes: further fields with their temporary values.
    """
    meanwhile = {**_LOSS_FIELDS, **changes}
    saved = {name: getattr(args, name) for name in meanwhile}
    for name, value in meanwhile.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(args, name, value)


def load_processing_class(model: Any, args: Any) -> Any:
    """Load a model's tokenizer or processor from the model's source, as `DPOTrainer` does.

    Args:
        model: Hub id, folder or module.
        args: the config.
    """
    path = model if isinstance(model, str) else get_config_model_id(model.config)
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    return AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=args.trust_remote_code)


def text_tokenizer(processing_class: Any) -> Any:
    """Return a tokenizer unchanged, or the tokenizer of a multimodal processor."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def load_reference(policy: Any, args: Any, quantization_config: Any, path: str | None = None) -> Any:
    """Load a second model from the policy's source, with its dtype and attention, as `DPOTrainer` does.

    Args:
        policy: the model to train.
        args: the config; its `model_init_kwargs` are used.
        quantization_config: the trainer's argument, or None.
        path: another folder or Hub id; None means the policy's.
    """
    options = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None
    options.setdefault("trust_remote_code", args.trust_remote_code)
    options.setdefault("dtype", policy.dtype)
    options.setdefault("attn_implementation", policy.config._attn_implementation)
    return create_model_from_path(path or get_config_model_id(policy.config), **options)


@contextmanager
def loading_policies_with(load: Callable[..., Any]) -> Iterator[None]:
    """Let `DPOTrainer` get a policy that is given as a path from `load` inside the block.

    Args:
        load: called as `load(create, path, **options)`, where `create(path, **options)` is what TRL would have called.
    """
    create = _dpo_trainer.create_model_from_path
    setattr(_dpo_trainer, "create_model_from_path", functools.partial(load, create))  # noqa: B010
    try:
        yield
    finally:
        setattr(_dpo_trainer, "create_model_from_path", create)  # noqa: B010


def prepare_reference(model: Any, trainer: Any) -> Any:
    """Add the fused head to a second model and wrap it (DDP, FSDP, DeepSpeed), as `DPOTrainer` does.

    Args:
        model: an unsharded model on any device.
        trainer: the trainer of the policy.
    """
    if trainer.args.disable_dropout:
        disable_dropout_in_model(model)
    add_fused_lm_head(model)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


def run_fused_head(fused_forward: Any, head: Any, backbone_outputs: Any, **inputs: Any) -> FusedCausalLMOutput:
    """Run only the head of a forward that `add_fused_lm_head` made.

    Args:
        fused_forward: the bound method that it assigned to the model.
        head: the model's output embeddings.
        backbone_outputs: what the model's backbone returned.
        **inputs: of the forward: `shift_labels`, ...
    """
    given = SimpleNamespace(base_model=lambda *args, **kwargs: backbone_outputs, get_output_embeddings=lambda: head)
    outputs: FusedCausalLMOutput = fused_forward.__func__(given, fused_lm_head=True, **inputs)
    return outputs


class _NoKernel:
    """Stand-in for a Triton kernel, called as `kernel[grid](...)`; it computes nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


@contextmanager
def head_as_on_a_gpu() -> Iterator[None]:
    """Make the fused head allocate what it allocates on a GPU, on tensors of any device; its kernels compute nothing.

    On a GPU, Triton kernels reduce each tile of logits in place, and products accumulate without temporaries. On a CPU,
    torch operations make several float32 copies of each tile.
    """
    stand_ins: dict[Any, dict[str, Any]] = {
        _utils: {"_use_triton": lambda device: True},
        _head: {
            "_use_triton": lambda device: True,
            "_forward_kernel": _NoKernel(),
            "_backward_kernel": _NoKernel(),
            "_addmm_fp32": lambda acc, a, b: None,
            "triton": SimpleNamespace(cdiv=lambda a, b: -(-a // b)),
        },
    }
    missing = object()
    saved = {module: {name: getattr(module, name, missing) for name in names} for module, names in stand_ins.items()}
    for module, names in stand_ins.items():
        for name, value in names.items():
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, names in saved.items():
            for name, value in names.items():
                if value is missing:
                    delattr(module, name)
                else:
                    setattr(module, name, value)
