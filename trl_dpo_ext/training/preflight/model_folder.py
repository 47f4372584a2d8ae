"""Check that a model folder can be loaded, before loading anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from ...registry import did_you_mean
from ..errors import ModelFolderError

# A tokenizer can be loaded from a folder that has one of these files.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def check_model(model: str, needs_tokenizer: bool) -> None:
    """Check that a model folder exists and can be loaded. Hub ids pass.

    Without this check, a missing folder would end in a traceback about the Hub.

    Args:
        model: folder or Hub id.
        needs_tokenizer: whether the tokenizer is loaded from the folder.

    Raises:
        FileNotFoundError: `model` looks like a path but isn't a model folder.
        ModelFolderError: a file in the folder is broken or missing.
    """
    path = Path(model).expanduser()
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or path.exists()
    if not looks_local:
        return
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"The model folder {model!r} contains an adapter, not a model. Pass the base model, or pass "
                "AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True) to continue training the adapter."
            )
        found = "has no config.json" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The model folder {model!r} {found}. Pass a folder written by save_pretrained, or a Hub id."
        )
    config = _json(path / "config.json")
    if (kind := config.get("model_type")) not in CONFIG_MAPPING and "auto_map" not in config:
        raise ModelFolderError(
            f"{path / 'config.json'}: transformers {transformers.__version__} doesn't know model_type {kind!r}."
            f"{did_you_mean(str(kind), CONFIG_MAPPING.keys())} If the model is new, upgrade transformers."
        )
    index = path / "model.safetensors.index.json"
    for name in sorted(set(_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]:
        if (path / name).is_file():
            _check_weights(path / name)
        elif index.is_file() or not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
            raise ModelFolderError(
                f"{path / name}, which contains model weights, is missing. Copy or download it again."
            )
    if needs_tokenizer and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelFolderError(
            f"The model folder {model!r} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). Save one there with "
            "tokenizer.save_pretrained, or pass processing_class."
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is not valid JSON: {error}. Copy or download it again.") from None
    return content


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):  # reads only the header, which states the file's size
            pass
    except SafetensorError as error:
        raise ModelFolderError(f"{path} is damaged or truncated ({error}). Copy or download it again.") from None
