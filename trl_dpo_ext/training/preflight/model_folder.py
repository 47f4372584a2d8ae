"""Check that a model folder can be loaded, before loading anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from ...modeling.weight_files import INDEX, WEIGHTS, weight_files
from ...record import read_record
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
    config = read_record(path / "config.json", dict[str, Any], ModelFolderError, "Copy or download it again.")
    if str(kind := config.get("model_type")) not in CONFIG_MAPPING and "auto_map" not in config:
        raise ModelFolderError(
            f"{path / 'config.json'}: transformers {transformers.__version__} doesn't know model_type {kind!r}."
            f"{did_you_mean(str(kind), CONFIG_MAPPING.keys())} If the model is new, upgrade transformers."
        )
    if (path / INDEX).is_file() or (path / WEIGHTS).is_file() or not _other_weights(path):
        weight_files(path, ModelFolderError)
    if needs_tokenizer and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelFolderError(
            f"The model folder {model!r} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). Save one there with "
            "tokenizer.save_pretrained, or pass processing_class."
        )


def _other_weights(path: Path) -> bool:
    return any([*path.glob("*.safetensors"), *path.glob("*.bin")])
