"""Compares an adapter's file with the model that it was loaded into.

PEFT loads what fits and leaves out the rest: if the names don't match, the model is the base model without a word.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open

from .library_errors import error_text
from .weight_files import Failure, check_values, tensor_shapes

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])(?:\.weight)?$")
_ADVICE = "Copy or download the adapter's folder again, and use the base model it was trained on."


def check_adapter_loaded(model: Any, folder: Path, error: Failure, adapter: str = "default") -> None:
    """Refuse an adapter of which the model took only a part, or nothing.

    Args:
        model: a `PeftModel` with the adapter of `folder`, not sharded.
        folder: of the adapter; its weights are read as safetensors.
        error: makes the exception from a message.
        adapter: its name in the model.

    Raises:
        error: a tensor of the file has no place in the model, one of the model isn't in the file, or has another shape.
    """
    path = folder / ADAPTER_WEIGHTS
    found = tensor_shapes(path, error)
    wanted = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if found == expected:
        return
    # PEFT renames what older versions of transformers and PEFT saved, so its own answer counts.
    trainable = any(p.requires_grad for name, p in model.named_parameters() if adapter in name.split("."))
    with peft_errors(folder, error):
        result = model.load_adapter(str(folder), adapter, is_trainable=trainable)
    missing, left_over = list(result.missing_keys), list(result.unexpected_keys)
    missing += [name for name in expected if name.endswith(".bias") and name not in found]  # PEFT doesn't report these
    if missing or left_over:
        faults = []
        if missing:
            faults.append(f"{len(missing)} tensors of the adapter are not in it ({_some(missing)})")
        if left_over:
            faults.append(f"{len(left_over)} of its tensors have no place in the model ({_some(left_over)})")
        raise error(
            f"{path} doesn't fit adapter_config.json and the base model: {' and '.join(faults)}. Loaded so, it "
            f"would be another model. {_ADVICE}"
        )


@contextlib.contextmanager
def peft_errors(folder: Path, error: Failure) -> Iterator[None]:
    """While open, make every error of PEFT one of the caller's: what it raises for a damaged folder is open-ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:
        raise error(
            f"PEFT can't load the adapter of {folder} on this base model ({error_text(problem)}). {_ADVICE}"
        ) from problem


def check_adapter_file(folder: Path, config: Mapping[str, Any], error: Failure) -> None:
    """Check the file of an adapter without its base model.

    Args:
        folder: of the adapter.
        config: its adapter_config.json.
        error: makes the exception from a message.

    Raises:
        error: the file is damaged, holds values that aren't finite, or nothing but zeros. Of a LoRA adapter also: names
            don't belong to the config, or every second factor is zero.
    """
    path = folder / ADAPTER_WEIGHTS
    check_values(path, error)
    if config.get("peft_type") != "LORA":
        return
    names = list(tensor_shapes(path, error))
    if strangers := [name for name in names if not name.startswith("base_model.model.")]:
        raise error(f"{path}: no PEFT model has a tensor called {_some(strangers)}. {_ADVICE}")
    for name in names:
        if (factor := _FACTOR.search(name)) is not None:
            twin = f"{name[: factor.start(1)]}{'B' if factor[1] == 'A' else 'A'}{name[factor.end(1) :]}"
            if twin not in names:
                raise error(f"{path} holds {name}, but not {twin}. {_ADVICE}")
    targets = config.get("target_modules")
    if isinstance(targets, list) and not config.get("target_parameters"):
        modules = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
        if others := [name for name in modules if not any(name.endswith(f".{target}") for target in targets)]:
            raise error(f"{path}: {_some(others)} is not among the target_modules of adapter_config.json. {_ADVICE}")
    if changes_nothing(path):
        raise error(
            f"{path} changes nothing: every second factor (lora_B) is zero, as before training. Save the adapter that "
            "was trained."
        )


def changes_nothing(path: Path) -> bool:
    """Return whether the file is that of a LoRA adapter before training: every second factor is zero.

    False for files with other tensors beside the factors, such as biases, whose values before training aren't known.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        second = [name for name in names if re.search(r"\.lora_(embedding_A|B\.weight)$", name)]
        if not second or len(second) != len(names) / 2:
            return False
        return not any(file.get_tensor(name).any() for name in second)


def _some(names: Sequence[str]) -> str:
    first = sorted(names)[:2]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
