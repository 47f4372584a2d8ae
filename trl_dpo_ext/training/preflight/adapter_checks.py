"""Check a quantized base model and its adapter without weights, from the config and the module names alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from ..._compat.deepspeed import full_size, own_part
from ..._compat.peft import converted_targets
from ...modeling.adapter_file import ADAPTER_WEIGHTS, check_adapter_loaded
from ...reference.frozen_adapter import FROZEN, TRAINED
from ...registry import did_you_mean
from ..errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def check_quantization(model: Any, quantization_config: Any, peft_config: Any, args: Any) -> None:
    """Reject a quantized base model that can't be trained or that is stored with another quantization.

    Args:
        model: Hub id, folder, or module. transformers checks modules that are already quantized.
        quantization_config: `BitsAndBytesConfig` or None.
        peft_config: config of the new adapter, or None.
        args: the configuration; it determines how the model is loaded.

    Raises:
        ConfigError: there is no adapter, or the stored model has another quantization.
    """
    if quantization_config is None or not isinstance(model, str):
        return
    if peft_config is None:
        raise ConfigError(
            "The model is loaded quantized, but quantized weights can't be trained. Add an adapter (use_peft: true, or "
            "peft_config), or load the model unquantized (without load_in_4bit)."
        )
    stored = getattr(_config(model, args), "quantization_config", None)
    if stored is None:
        return
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    bits = 4 if quantization_config.load_in_4bit else 8
    if not stored.get(f"load_in_{bits}bit"):
        method = stored.get("quant_method", "another method")
        raise ConfigError(
            f"The recipe loads the model in {bits} bit, but {model!r} is already stored quantized with {method!r} and "
            f"can't be quantized again. Use the unquantized model, or remove load_in_{bits}bit."
        )


def check_reference_adapter(model: Any, ref_model: Any, peft_config: Any, args: Any) -> None:
    """Reject adapters that don't work with the reference.

    Args:
        model: Hub id, folder, or module.
        ref_model: a second model, or None.
        peft_config: config of a new adapter, or None.
        args: the configuration.

    Raises:
        ConfigError: an adapter has the wrong name, or `sync_ref_model` has no adapter to update in `ref_model`.
    """
    adapters = list(model.peft_config) if isinstance(model, PeftModel) else []
    if ref_model is not None:
        if args.sync_ref_model and (adapters or peft_config is not None):
            raise ConfigError(
                "sync_ref_model=True updates the reference from the policy. The policy has an adapter, but "
                "ref_model has none to update. Remove ref_model; the reference is then a copy of the adapter."
            )
    elif adapters and TRAINED not in adapters:
        raise ConfigError(
            f"The model's adapters are named {', '.join(map(repr, adapters))}, but the adapter to train must be named "
            f"{TRAINED!r}. Load it without adapter_name; {TRAINED!r} is PEFT's default."
        )
    elif FROZEN in adapters:
        raise ConfigError(
            f"The model already has an adapter named {FROZEN!r}, perhaps from an earlier trainer. That name is "
            f"reserved for the reference. Call model.delete_adapter({FROZEN!r}), or load the model again."
        )


def check_target_modules(model: Any, peft_config: Any, args: Any) -> None:
    """Reject an adapter whose `target_modules` match nothing in the model. Warn if only some of them match nothing.

    Args:
        model: Hub id, folder, or module. For an id or folder, the modules are built from the config, without weights.
        peft_config: config of the adapter, or None.
        args: the configuration; it determines how the model is loaded.

    Raises:
        ConfigError: no target matches. The message lists the model's layers.
    """
    if peft_config is None:
        return
    if peft_config.peft_type == PeftType.ADALORA:
        raise ConfigError(
            "AdaLoRA moves its ranks between layers by a call after each step (update_and_allocate), which neither "
            "transformers nor TRL makes: it would train as plain LoRA with a penalty. Use LoraConfig."
        )
    modules = model if isinstance(model, nn.Module) else _without_weights(model, args)
    if modules is None:
        return
    _check_names("lora_modules_to_save", getattr(peft_config, "modules_to_save", None), modules.named_modules())
    _check_names("lora_target_parameters", getattr(peft_config, "target_parameters", None), modules.named_parameters())
    targets = getattr(peft_config, "target_modules", None)
    if not targets or targets == "all-linear" or set(targets) == {"all-linear"}:
        return
    try:
        # PEFT takes the names that experts had as layers of their own (w1, gate_proj, ...) for the fused parameters.
        converted = converted_targets(peft_config, modules)
    except ValueError as error:
        raise ConfigError(f"lora_target_modules={', '.join(sorted(targets))}: {error}") from error
    if getattr(converted, "target_parameters", None):  # LoRA has them, other methods don't
        targets = converted.target_modules
        if not targets:
            return
    names = [name for name, _ in modules.named_modules() if name]
    listed = [targets] if isinstance(targets, str) else sorted(targets)
    unmatched = [
        target for target in listed if not any(_matches(target, name, isinstance(targets, str)) for name in names)
    ]
    linear = _linear_layers(modules)
    if len(unmatched) == len(listed):
        raise ConfigError(
            f"lora_target_modules={', '.join(map(repr, listed))} match nothing in this model."
            f"{did_you_mean(listed[0], linear)} Its linear layers are: {', '.join(linear)}. Use 'all-linear' for all "
            "of them except the language-model head."
        )
    if unmatched:
        logger.warning(
            "lora_target_modules: %s match nothing in this model and get no adapter. Its linear layers are: %s.",
            ", ".join(map(repr, unmatched)),
            ", ".join(linear),
        )


def _check_names(setting: str, wanted: Any, found: Iterable[tuple[str, Any]]) -> None:
    """Refuse names that nothing in the model has; PEFT would leave them out without a word."""
    names = [name for name, _ in found if name]
    for name in wanted or ():
        if not any(_matches(name, known, is_pattern=False) for known in names):
            last_parts = sorted({known.rpartition(".")[2] for known in names})
            raise ConfigError(
                f"{setting}: nothing in this model is called {name!r}.{did_you_mean(name, last_parts)} Give the name "
                "of a module or parameter, or the end of its path."
            )


def _matches(target: str, name: str, is_pattern: bool) -> bool:
    # As in PEFT: a string is a regular expression for full names; a list contains names or name suffixes.
    return bool(re.fullmatch(target, name)) if is_pattern else name == target or name.endswith(f".{target}")


def _linear_layers(modules: nn.Module) -> list[str]:
    kinds = ("Linear", "Conv1D")
    found: Iterable[str] = (name for name, module in modules.named_modules() if type(module).__name__.startswith(kinds))
    return sorted({name.rpartition(".")[2] for name in found})


def _config(model: str, args: Any) -> Any:
    revision = (args.model_init_kwargs or {}).get("revision")
    options = {"revision": revision} if revision else {}
    return AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code, **options)


def _without_weights(model: str, args: Any) -> nn.Module | None:
    config = _config(model, args)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None  # custom code from the Hub; PEFT raises if nothing matches
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        # Not from_config: under ZeRO-3 it initializes and shards the weights, of which there are none here.
        return (kind[0] if isinstance(kind, tuple) else kind)(config)


def check_second_model(model: Any, ref_model: Any) -> None:
    """Refuse a reference that trains along, because it is the policy or shares weights with it.

    Args:
        model, ref_model: as given to the trainer; paths can't share anything.

    Raises:
        ConfigError: says what is shared.
    """
    if not (isinstance(model, nn.Module) and isinstance(ref_model, nn.Module)):
        return
    advice = "The reference would train along. Remove ref_model: it is then the model as training starts from it."
    if ref_model is model:
        raise ConfigError(f"ref_model is the model to train itself. {advice}")
    if isinstance(model, PeftModel) and set(ref_model.modules()) & set(model.modules()):
        raise ConfigError(
            f"ref_model is the base of the PEFT model to train, and has its adapters' layers inside. {advice}"
        )
    trained = {_place(p) for p in model.parameters() if p.requires_grad and full_size(p)}
    shared = [name for name, p in ref_model.named_parameters() if full_size(p) and _place(p) in trained]
    if shared:
        raise ConfigError(f"ref_model shares trainable weights with the model ({', '.join(shared[:3])}, ...). {advice}")


def _place(weight: nn.Parameter) -> int:
    part: Any = own_part(weight)
    return int((part.to_local() if hasattr(part, "to_local") else part).data_ptr())


def check_checkpoint_adapter(model: Any, checkpoint: str | Path) -> None:
    """Refuse a checkpoint whose adapter isn't the model's: transformers loads what fits, and goes on without the rest.

    Args:
        model: the model to train.
        checkpoint: the folder to resume from.

    Raises:
        CheckpointError: a tensor is missing or superfluous, or has another shape.
    """
    folder = Path(checkpoint)
    sharded = is_deepspeed_zero3_enabled()  # each process has parts of the model's tensors
    if isinstance(model, PeftModel) and (folder / ADAPTER_WEIGHTS).is_file() and not sharded:
        check_adapter_loaded(model, folder, CheckpointError)
