"""Fingerprint of a model's weights: hashed from the weights themselves, not from the path they came from.

The same folder can hold other weights tomorrow, and a model in memory may have changed since it was loaded. The
fingerprint tells whether two runs, or a run and stored log-probs, have the same reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .._compat.deepspeed import gathered, is_partitioned
from .._compat.peft import adapters_are_disabled, adapters_of_layer
from .._compat.torch import own_state

# Prefixes that DistributedDataParallel, FSDP, activation checkpointing and torch.compile put before a module's name.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class FingerprintError(RuntimeError):
    """Weights that can't be read: sharded over processes, offloaded, or of a type without plain bytes."""


def fingerprint(model: nn.Module, adapters: Sequence[str] | None = None) -> str:
    """Hash all weights that the model's forward reads.

    The hash covers name, shape, dtype and bytes of every parameter and buffer, the statistics of 4-bit and 8-bit
    weights, and the scaling of adapters. Names are those of the plain model, so DDP, torch.compile and PEFT change
    nothing: a base model has the same fingerprint alone and under an adapter that is off, and an adapter has the same
    one under any name. Training mode, `requires_grad` and the device change nothing either.

    Buffers that aren't saved with the model (rotary frequencies, masks) follow from its config. Each machine computes
    them anew, and the last bits may differ, so they are rounded to bfloat16: other rotary settings still show.

    Args:
        model: on any device; DDP or torch.compile may wrap it. One tensor at a time is copied to the CPU. Weights that
            ZeRO-3 or tensor parallelism split are gathered module by module, so all processes must call this.
        adapters: PEFT adapters to treat as active, none for the base model; by default those active now.

    Returns:
        32 hexadecimal digits (xxh3, 128 bits: against accidents, not against forgery).

    Raises:
        FingerprintError: weights are sharded by FSDP1, offloaded, merged with an adapter, or of a type without plain
            bytes.
    """
    digests: dict[tuple[Any, ...], tuple[Tensor, str]] = {}
    entries = []
    for name, value in _read(model, "", adapters):
        if isinstance(value, Tensor):
            # Tied weights are hashed once. Keeping the tensor keeps its address from being reused.
            held = value.to_local() if isinstance(value, DTensor) else value
            place = (value.device, held.data_ptr(), value.dtype, value.shape, value.stride())
            if place not in digests:
                digests[place] = (value, _digest(name, value))
            entries.append(f"{name} {digests[place][1]}")
        else:
            entries.append(f"{name} {value}" if isinstance(value, _Digest) else f"{name} {value!r}")
    return xxhash.xxh3_128("\n".join(sorted(entries)).encode()).hexdigest()


class _Digest(str):
    """What stands for a tensor: its dtype, shape and hash."""


def _read(module: Any, prefix: str, adapters: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield (name in the plain model, tensor or setting) for everything that the module's forward reads."""
    if hasattr(module, "peft_config") and hasattr(module, "get_base_model"):
        on = adapters
        if on is None:
            on = [] if adapters_are_disabled(module) else module.active_adapters
        for adapter in on:
            if module.peft_config[adapter].is_prompt_learning:
                yield from _read(module.prompt_encoder[adapter], f"{prefix}prompt_encoder.", adapters)
        yield from _read(module.get_base_model(), prefix, adapters)
        return
    children = dict(module.named_children())
    if hasattr(module, "adapter_layer_names"):  # a PEFT layer around one of the model's
        on = [] if module.disable_adapters else module.active_adapters
        on = [name for name in (on if adapters is None else adapters) if name in adapters_of_layer(module)]
        if module.merged_adapters:
            raise FingerprintError(f"{prefix}: an adapter is merged into the weights. Call unmerge_adapter() first.")
        if "modules_to_save" in children:
            yield from _read(children["modules_to_save"][on[0]] if on else module.original_module, prefix, adapters)
            return
        for inner in ("base_layer", "token_adapter"):
            if inner in children:
                yield from _read(children[inner], prefix, adapters)
        if "token_adapter" not in children:
            yield from _read_adapters(module, prefix, on)
        return

    yield from _read_own(module, prefix)
    for child_name, child in children.items():
        transparent = child_name in _WRAPPERS or (child_name == "module" and not prefix)
        yield from _read(child, prefix if transparent else f"{prefix}{child_name}.", adapters)


def _read_adapters(module: Any, prefix: str, adapters: Sequence[str]) -> Iterator[tuple[str, Any]]:
    # By position among the active ones, since an adapter's name doesn't matter.
    for place, adapter in enumerate(adapters):
        for attribute in (*module.adapter_layer_names, *module.other_param_names):
            values = getattr(module, attribute)
            name = f"{prefix}{attribute}.{place}"
            if not hasattr(values, "keys") or adapter not in values:
                continue
            value = values[adapter]
            if isinstance(value, nn.Module):
                yield from _read(value, f"{name}.", ())
            elif isinstance(value, Tensor | int | float | str | bool | list | tuple):
                yield name, value


def _read_own(module: nn.Module, prefix: str) -> Iterator[tuple[str, Any]]:
    if type(module).__name__ == "FullyShardedDataParallel":
        raise FingerprintError(
            f"{prefix or 'the model'}: the weights are sharded over processes. Take the fingerprint before sharding."
        )
    weights = list(module.parameters(recurse=False))
    with gathered(weights):
        own = own_state(module, prefix)
        if any(map(is_partitioned, weights)):  # whole only here, so no tensor may leave
            own = {name: _digest(name, value) if isinstance(value, Tensor) else value for name, value in own.items()}
        yield from own.items()
    for name, buffer in module.named_buffers(recurse=False):
        if f"{prefix}{name}" not in own:
            yield f"{prefix}{name}", buffer.bfloat16() if buffer.is_floating_point() else buffer


def _digest(name: str, tensor: Tensor) -> _Digest:
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if tensor.is_meta or hasattr(tensor, "__tensor_flatten__"):
        what = "isn't loaded" if tensor.is_meta else f"is a {type(tensor).__name__}, a type without plain bytes"
        raise FingerprintError(f"{name}: this weight {what}.")
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    content: Any = flat.numpy()
    return _Digest(f"{tensor.dtype} {tuple(tensor.shape)} {xxhash.xxh3_128(content).hexdigest()}")
