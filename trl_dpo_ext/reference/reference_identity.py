"""Which weights the reference is: told from the weights themselves, not from the path they came from.

The same folder can hold other weights tomorrow, and a model in memory may have been changed since it was loaded. A
fingerprint settles whether two runs, or a run and a store of log-probs, mean the same reference.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from ..record import write_json

logger = logging.getLogger(__name__)

FILE = "reference.json"
KINDS = {
    "adapters_off": "the base model with its adapters off",
    "starting_adapter": "a frozen copy of the starting adapter",
    "second_model": "a second model",
    "none": "none",
}

# Names that DistributedDataParallel, FSDP, activation checkpointing and torch.compile put in front of a module's own.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class FingerprintError(RuntimeError):
    """Weights that can't be read here: sharded over processes, offloaded, or of a kind that has no plain bytes."""


class ReferenceMismatchError(ValueError):
    """A checkpoint that was trained against another reference."""


@dataclass(frozen=True)
class ReferenceIdentity:
    """Which reference a run has.

    Attributes:
        kind: one of `KINDS`.
        description: a phrase for people, with the name of the model.
        fingerprint: see `fingerprint`; None for no reference, and where the weights can't be read.
    """

    kind: str
    description: str
    fingerprint: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReferenceIdentity:
        """Build it from a dictionary.

        Raises:
            ValueError: an unknown kind, missing or further keys.
        """
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__) or values["kind"] not in KINDS:
            raise ValueError(
                f"{values!r} is no reference: it has kind (one of {', '.join(KINDS)}), description and fingerprint."
            )
        return cls(**values)

    def __str__(self) -> str:
        if self.kind == "none":
            return self.description
        return f"{self.description} ({self.kind}, fingerprint {(self.fingerprint or 'unknown')[:12]})"

    def save(self, folder: str | Path) -> None:
        """Write `reference.json` into a checkpoint."""
        write_json(Path(folder) / FILE, self.as_dict())

    def check_checkpoint(self, folder: str | Path) -> None:
        """Refuse to go on from a checkpoint that was trained against another reference.

        A checkpoint that doesn't say which (of an earlier version) is warned about.

        Raises:
            ReferenceMismatchError: the references differ, or the file can't be read.
        """
        path = Path(folder) / FILE
        if self.kind == "none":
            return
        if not path.exists():
            logger.warning(
                f"{folder} doesn't say which reference it was trained against, so that isn't checked. Now it is {self}."
            )
            return
        try:
            saved = ReferenceIdentity.from_dict(json.loads(path.read_text()))
        except ValueError as error:
            raise ReferenceMismatchError(f"{path} can't be read: {error} Take another checkpoint.") from error
        if saved.kind != "none" and None in (saved.fingerprint, self.fingerprint):
            logger.warning(f"The reference of {folder} ({saved}) can't be compared with this one ({self}).")
        elif saved.fingerprint != self.fingerprint:
            raise ReferenceMismatchError(
                f"{folder} was trained against another reference.\n  then: {saved}\n  now:  {self}\n"
                "Give the trainer the model, starting adapter and ref_model that the run began with, not those of the "
                "checkpoint: resume_from_checkpoint loads the trained weights over them. To train against the new "
                "reference on purpose, start a new run without resume_from_checkpoint."
            )


def fingerprint(model: nn.Module, adapters: Sequence[str] | None = None) -> str:
    """Hash all weights that the model's forward reads.

    Names, shapes, dtypes and bytes of every parameter and buffer count, the statistics of 4-bit and 8-bit weights and
    the scaling of adapters too. Names are those of the plain model: DDP, torch.compile and PEFT change nothing. So a
    base model has the same fingerprint alone and under an adapter that is off, and an adapter has the same one under
    any name. Training mode, `requires_grad` and the device change nothing either.

    Buffers that aren't saved with the model (rotary frequencies, masks) follow from its config and are computed anew on
    each machine, where the last bits may differ: they count as rounded to bfloat16, so that other rotary settings show.

    Args:
        model: on any device; wrapped by DDP or torch.compile or not. One tensor at a time is copied to the CPU.
        adapters: PEFT adapters to count as switched on; none for the base model. By default those that are on now.

    Returns:
        32 hexadecimal digits (xxh3, 128 bits: against accidents, not against forgery).

    Raises:
        FingerprintError: weights are sharded, offloaded, merged with an adapter, or have no plain bytes.
    """
    digests: dict[tuple[Any, ...], tuple[Tensor, str]] = {}
    entries = []
    for name, value in _read(model, "", adapters):
        if isinstance(value, Tensor):
            # Tied weights are read once. The tensor is kept, so that no other one can get its address meanwhile.
            place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if place not in digests:
                digests[place] = (value, _digest(name, value))
            entries.append(f"{name} {value.dtype} {tuple(value.shape)} {digests[place][1]}")
        else:
            entries.append(f"{name} {value!r}")
    return xxhash.xxh3_128("\n".join(sorted(entries)).encode()).hexdigest()


def _read(module: Any, prefix: str, adapters: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield (name in the plain model, tensor or setting) of everything that the module's forward reads."""
    if hasattr(module, "peft_config") and hasattr(module, "get_base_model"):
        on = adapters
        if on is None:
            on = [] if module._adapters_disabled else module.active_adapters
        for adapter in on:
            if module.peft_config[adapter].is_prompt_learning:
                yield from _read(module.prompt_encoder[adapter], f"{prefix}prompt_encoder.", adapters)
        yield from _read(module.get_base_model(), prefix, adapters)
        return
    children = dict(module.named_children())
    if hasattr(module, "adapter_layer_names"):  # a layer of PEFT around one of the model
        on = [] if module.disable_adapters else module.active_adapters
        on = [name for name in (on if adapters is None else adapters) if _has(module, name)]
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


def _has(module: Any, adapter: str) -> bool:
    return adapter in module._get_available_adapters()


def _read_adapters(module: Any, prefix: str, adapters: Sequence[str]) -> Iterator[tuple[str, Any]]:
    # By their place among those that are on, since a name says nothing.
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
    if type(module).__name__ == "FullyShardedDataParallel" or any(
        hasattr(p, "ds_id") for p in module.parameters(False)
    ):
        raise FingerprintError(
            f"{prefix or 'the model'}: the weights are sharded over processes. Take the fingerprint before that."
        )
    # What the module would save of itself, without its children: bitsandbytes adds the statistics of its weights.
    own: dict[str, Any] = {}
    module._save_to_state_dict(own, prefix, keep_vars=False)
    yield from own.items()
    for name, buffer in module.named_buffers(recurse=False):
        if f"{prefix}{name}" not in own:
            yield f"{prefix}{name}", buffer.bfloat16() if buffer.is_floating_point() else buffer


def _digest(name: str, tensor: Tensor) -> str:
    if tensor.is_meta or hasattr(tensor, "__tensor_flatten__"):
        what = "isn't loaded" if tensor.is_meta else f"is a {type(tensor).__name__}, which has no plain bytes"
        raise FingerprintError(f"{name}: this weight {what}.")
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    content: Any = flat.numpy()
    return xxhash.xxh3_128(content).hexdigest()
