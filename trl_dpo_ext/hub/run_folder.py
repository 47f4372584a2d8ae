"""Reads the folder of a finished run. Nothing else in hub/ reads its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..record import RECORD_FORMAT, Record, check_content, checked, read_json
from ..strict_yaml import parse_yaml
from .run_schemas import AdapterConfig, MergeRecord, ModelConfig, RecipeRecord, ReferenceRecord, ResultRecord

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
RECIPE, RESULT, MERGE, REFERENCE = "recipe.yaml", "result.json", "merge.json", "reference.json"
_SCHEMAS: dict[str, type[Record]] = {
    ADAPTER_CONFIG: AdapterConfig,
    MODEL_CONFIG: ModelConfig,
    RECIPE: RecipeRecord,
    MERGE: MergeRecord,
    REFERENCE: ReferenceRecord,
    RESULT: ResultRecord,
}
_ADVICE = "Restore the file as the run wrote it, or delete it."
_CONTENTS = ("adapter", "recipe", "result", "merge", "reference")


class RunError(ValueError):
    """A folder that can't be used as a run. The message says what is wrong, and what to do."""


@dataclass(frozen=True)
class TrainedBase:
    """The base model under an adapter, as it was loaded for training.

    Attributes:
        model: Hub id or folder.
        revision: revision of the Hub repository, or None.
        dtype: "float32", "bfloat16", "float16" or "auto"; of a quantized model, the dtype of its other weights.
        quantization: fields of transformers' `BitsAndBytesConfig`; None for a base that wasn't quantized.
    """

    model: str
    revision: str | None
    dtype: str
    quantization: Mapping[str, Any] | None


@dataclass(frozen=True)
class Run:
    """The files of a run's folder, read and checked. A missing file is an empty mapping.

    Attributes:
        folder: the run's folder.
        adapter: adapter_config.json.
        config: config.json, of a full or merged model.
        recipe: recipe.yaml, the settings that differ from the defaults.
        result: result.json.
        merge: merge.json, of a merged model.
        reference: reference.json, the reference's identity.
    """

    folder: Path
    adapter: Mapping[str, Any]
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    result: Mapping[str, Any]
    merge: Mapping[str, Any]
    reference: Mapping[str, Any]

    def trained_base(self) -> TrainedBase:
        """Return the base model under the adapter, and how training loaded it.

        Raises:
            RunError: no adapter, no base model named, or nothing says how the base was loaded.
        """
        if not self.adapter:
            raise RunError(f"{self.folder} has no {ADAPTER_CONFIG}: it is not the folder of an adapter.")
        model = self.adapter.get("base_model_name_or_path")
        if not model:
            raise RunError(f"{self.folder / ADAPTER_CONFIG} names no base_model_name_or_path.")
        revision = self.adapter.get("revision") or self.recipe.get("model_revision")
        if (base := self.result.get("base")) is not None:
            return TrainedBase(model, revision, base["dtype"], base["quantization"])
        if not self.recipe:
            raise RunError(
                f"{self.folder} has neither {RESULT} nor {RECIPE}, so nothing says whether the base model was "
                f"quantized in training. Write a {RECIPE} there with the setting that was used: `load_in_4bit: true` "
                "or `load_in_4bit: false`."
            )
        dtype, quantization = _of_recipe(self.recipe)
        return TrainedBase(model, revision, dtype, quantization)

    def on(self, base_model: str, base_revision: str | None) -> Run:
        """Return the run as others see it, with the base model's Hub id in place of its local path."""
        path = self.adapter.get("base_model_name_or_path") or self.recipe.get("model_name_or_path") or base_model
        seen = {name: _renamed(getattr(self, name), path, base_model) for name in _CONTENTS}
        if self.adapter:
            seen["adapter"] |= {"base_model_name_or_path": base_model, "revision": base_revision}
        if self.recipe:
            seen["recipe"] |= {"model_name_or_path": base_model}
            seen["recipe"] |= {"model_revision": base_revision} if base_revision is not None else {}
        if "recipe" in seen["result"]:
            seen["result"]["recipe"] = seen["recipe"]
        return replace(self, **seen)

    def sample_prompts(self) -> list[str]:
        """Return the prompts of the run's samples, each once; empty if the run took none."""
        samples = ((self.result.get("evaluation") or {}).get("after") or {}).get("samples") or []
        return list(dict.fromkeys(sample["prompt"] for sample in samples))


def read_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        RunError: the folder doesn't exist or holds no model, a file is damaged, or a newer version wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"The folder {str(folder)!r} does not exist. Give the output folder of a finished run.")
    result = _read(folder / RESULT)
    written = result.get("format", 1)
    if type(written) is not int or written > RECORD_FORMAT:
        versions = result.get("versions")
        by = versions.get("trl-dpo-ext", "a newer version") if isinstance(versions, dict) else "a newer version"
        raise RunError(
            f"{folder / RESULT} has format {written!r}, written by trl-dpo-ext {by}; this version reads up to format "
            f"{RECORD_FORMAT}. Upgrade with `pip install -U trl-dpo-ext`."
        )
    names = (ADAPTER_CONFIG, MODEL_CONFIG, RECIPE, MERGE, REFERENCE)
    adapter, config, recipe, merge, reference = (_checked(folder / name, _read(folder / name)) for name in names)
    _checked(folder / RESULT, result)
    if not adapter and not config:
        raise RunError(f"{folder} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}, so there is no model in it.")
    return Run(folder, adapter, config, recipe, result, merge, reference)


def _renamed(content: Any, path: str, name: str) -> Any:
    """Return JSON content with `name` in place of the word `path`; a path without a slash only in quotes."""
    if isinstance(content, Mapping):
        return {key: _renamed(value, path, name) for key, value in content.items()}
    if isinstance(content, list):
        return [_renamed(value, path, name) for value in content]
    if not isinstance(content, str) or content == path:
        return name if content == path else content
    word = rf"(?<![\w./-]){re.escape(path)}(?![\w./-])" if "/" in path else f"(?<=['\"]){re.escape(path)}(?=['\"])"
    return re.sub(word, lambda _: name, content)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = _read_yaml(path) if path.suffix == ".yaml" else read_json(path, RunError, _ADVICE)
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, expected a mapping. {_ADVICE}")
    return content


def _checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Check the content of a file, unless the file is missing; return it with the keys that no schema knows."""
    if content:
        checked(content, _SCHEMAS[path.name], path, RunError, _ADVICE)
    return content


def _read_yaml(path: Path) -> Any:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path)).values
        check_content(content)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise RunError(f"{path} can't be read: {' '.join(str(error).split())}. {_ADVICE}") from None
    return content


def _of_recipe(recipe: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    from trl import ModelConfig, get_quantization_config

    known = {field.name for field in fields(ModelConfig)}
    settings = ModelConfig(**{name: value for name, value in recipe.items() if name in known})
    try:
        quantization = get_quantization_config(settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{RECIPE}: the quantization is invalid: {error}. {_ADVICE}") from None
    return settings.dtype or "auto", None if quantization is None else quantization.to_dict()
