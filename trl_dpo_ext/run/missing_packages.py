"""Settings of a recipe that need a package which isn't installed, or that name none."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from transformers import AttentionInterface
from transformers.integrations import INTEGRATION_TO_CALLBACK
from trl import ModelConfig

from ..registry import did_you_mean
from ..training import PreferenceConfig

# A part of an optimizer's name -> the module that it needs.
_OPTIMIZERS = {
    "apollo": "apollo_torch",
    "galore": "galore_torch",
    "grokadamw": "grokadamw",
    "lomo": "lomo_optim",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "torchao": "torchao",
}
# Attention implementation -> modules, any of which has it; `kernels` downloads it.
_ATTENTION = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
    "flash_attention_4": ("flash_attn", "kernels"),
}


def missing_packages(config: PreferenceConfig, model: ModelConfig) -> Iterator[str]:
    """Yield a sentence for each setting that needs a package that isn't installed, or whose value is unknown."""
    yield from _trackers(config.report_to)
    if config.use_liger_kernel and not installed("liger_kernel"):
        yield "use_liger_kernel: true needs a package: pip install liger-kernel. Or remove it."
    optimizer = str(getattr(config.optim, "value", config.optim))
    if (module := needs_package(optimizer)) and not installed(module):
        yield f"optim={optimizer!r} needs the module {module}, which is missing. Install it, or use adamw_torch."
    init = config.model_init_kwargs if isinstance(config.model_init_kwargs, dict) else {}
    yield from _attention(init.get("attn_implementation") or model.attn_implementation)


def needs_package(optimizer: str) -> str | None:
    """Return the module that an optimizer comes from, or None if torch or bitsandbytes has it."""
    return next((module for part, module in _OPTIMIZERS.items() if part in optimizer), None)


def installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return find_spec(module) is not None


def _trackers(report_to: str | list[str] | None) -> Iterator[str]:
    for tracker in [report_to] if isinstance(report_to, str) else report_to or []:
        if tracker in ("all", "none"):
            continue
        if tracker not in INTEGRATION_TO_CALLBACK:
            known = sorted(INTEGRATION_TO_CALLBACK)
            yield (
                f"report_to={tracker!r} is unknown.{did_you_mean(str(tracker), known)} It is one of: none, all, "
                f"{', '.join(known)}."
            )
            continue
        try:
            INTEGRATION_TO_CALLBACK[tracker]()
        except (ImportError, RuntimeError) as error:  # what transformers would say once the model is loaded
            yield f"report_to={tracker!r} can't be used: {error} Or set report_to: none."


def _attention(name: Any) -> Iterator[str]:
    if not isinstance(name, str) or "/" in name or "|" in name:  # the model's own, or a kernel of the Hub
        return
    ours = "trl_dpo_ext"  # implementations that the trainer registers for itself
    known = sorted({"eager", *(key for key in AttentionInterface().valid_keys() if "|" not in key)})
    if name in _ATTENTION and not any(map(installed, _ATTENTION[name])):
        yield (
            f"attn_implementation={name!r} needs the module {' or '.join(_ATTENTION[name])}, and neither is installed. "
            "Install one, or use sdpa."
        )
    elif name not in known:
        offered = [key for key in known if not key.startswith(ours)]
        yield (
            f"attn_implementation={name!r} is unknown.{did_you_mean(name, offered)} It is one of: "
            f"{', '.join(offered)}, or a kernel of the Hub (owner/name)."
        )
