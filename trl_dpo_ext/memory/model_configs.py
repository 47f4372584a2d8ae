"""The configs of models, so that their memory can be estimated without weights, and for some models without the Hub."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..registry import did_you_mean

CONFIGS = Path(__file__).with_name("configs")
"""Holds OWNER/NAME/config.json for each model, and other_names.json: the other exact names of the same shape."""


class UnknownModelError(ValueError):
    """A model whose config is in no folder, doesn't come with this package, and can't be had from the Hub."""


@cache
def known_models() -> dict[str, Path]:
    """Return the folder of the config.json that comes with this package, by each exact name of the model.

    A name is a Hub id, a short name such as `qwen3-8b`, or the folder that the first stage of a recipe here writes.
    """
    folders = {path.parent.relative_to(CONFIGS).as_posix(): path.parent for path in CONFIGS.glob("*/*/config.json")}
    others = json.loads((CONFIGS / "other_names.json").read_text())
    return folders | {other: folders[name] for name, names in others.items() for other in names}


def short_names() -> list[str]:
    """Return the names of `known_models` that have no owner, such as `qwen3-8b`."""
    return sorted(name for name in known_models() if "/" not in name)


def load_model_config(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """Return a model's config without its weights.

    Args:
        name: a folder with a config.json, one of `known_models`, or a Hub id. A folder that exists comes first.
        revision: of the Hub id.
        trust_remote_code: as for transformers.

    Raises:
        UnknownModelError: none of these.

    >>> load_model_config("meta-llama/Llama-3.1-8B-Instruct").num_hidden_layers
    32
    """
    folder = None if Path(name).is_dir() else known_models().get(name.rstrip("/"))
    try:
        if folder is not None:
            return AutoConfig.from_pretrained(folder)
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = did_you_mean(name.rstrip("/").rpartition("/")[2].lower(), short_names())
        raise UnknownModelError(
            f"The config of {name!r} can't be read: {reason}{hint} Give a folder with a config.json, a Hub id that can "
            f"be reached, or one of: {', '.join(short_names())}. If an earlier stage has yet to write this folder, "
            "name the model which that stage starts from: `trl-dpo-ext memory RECIPE --model NAME`."
        ) from error
