"""Whether a model folder can be loaded, found out before anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from ...registry import did_you_mean
from ..errors import ModelFolderError

# Any of these makes a folder one that a tokenizer can be loaded from.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def check_model(model: str, needs_tokenizer: bool) -> None:
    """Raise a sentence, not a Hub traceback, for a folder that isn't there or can't be loaded; Hub ids pass.

    Raises:
        FileNotFoundError: `model` looks like a path and isn't a model folder.
        ModelFolderError: a file in it is broken or missing.
    """
    path = Path(model).expanduser()
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or path.exists()
    if not looks_local:
        return
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"The model folder {model!r} holds an adapter, not a model. Give the base model, or pass "
                "AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True) to go on training the adapter."
            )
        found = "has no config.json" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The model folder {model!r} {found}. Give a folder written by save_pretrained, or a Hub id."
        )
    config = _json(path / "config.json")
    if (kind := config.get("model_type")) not in CONFIG_MAPPING and "auto_map" not in config:
        raise ModelFolderError(
            f"{path / 'config.json'}: model_type is {kind!r}, which transformers {transformers.__version__} doesn't "
            f"know.{did_you_mean(str(kind), CONFIG_MAPPING.keys())} A newer transformers may."
        )
    index = path / "model.safetensors.index.json"
    for name in sorted(set(_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]:
        if (path / name).is_file():
            _check_weights(path / name)
        elif index.is_file() or not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
            raise ModelFolderError(f"{path / name} is missing; it holds weights of the model.")
    if needs_tokenizer and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelFolderError(
            f"The model folder {model!r} has no tokenizer ({', '.join(_TOKENIZER_FILES)}). Save it there with "
            "tokenizer.save_pretrained, or pass processing_class."
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is not valid JSON: {error}. Copy or download the file again.") from None
    return content


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):  # reads the header only, which holds the size of the whole
            pass
    except SafetensorError as error:
        raise ModelFolderError(f"{path} is damaged or cut short ({error}). Copy or download it again.") from None
