"""Selects the files of a run's folder that go to the Hub. It lists what is allowed, so new files stay local."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..secret_scan import secrets_in
from ..strict_yaml import dump_yaml
from .run_folder import ADAPTER_CONFIG, MERGE, RECIPE, REFERENCE, RESULT, Run, RunError

CARD = "README.md"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_MODEL = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
_RECORD = ("recipe.yaml", "result.json", "reference.json", "merge.json", "*.png")

Files = dict[str, Path | bytes]


def hub_id(name: str) -> bool:
    """Whether a name can be a repository on the Hub and isn't a local folder."""
    if len(name) > 200:  # longer than the Hub allows, and than a file system looks up
        return False
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and name[0] not in "./~" and not Path(name).exists()


def base_model_id(run: Run, base_model: str | None, base_revision: str | None) -> tuple[str, str | None]:
    """Return the Hub id and revision of the base model, as given or recorded.

    Raises:
        RunError: only a local path is known, and nobody else could load the adapter with it.
    """
    recorded = (
        run.adapter.get("base_model_name_or_path")
        or run.merge.get("base_model")
        or run.recipe.get("model_name_or_path")
    )
    for name in (base_model, run.recipe.get("hub_base_model"), recorded):
        if name is not None:
            if not hub_id(name):
                raise RunError(
                    f"The base model of {run.folder} is {name!r}, a path on this machine: nobody else could load the "
                    "adapter. Give its name on the Hub: --base-model OWNER/NAME [--base-revision COMMIT]."
                )
            revision = run.recipe.get("hub_base_revision") or run.adapter.get("revision")
            return name, base_revision or revision or run.recipe.get("model_revision")
    raise RunError(f"Nothing in {run.folder} names the base model. Give its name on the Hub: --base-model OWNER/NAME.")


def files_to_push(run: Run, card: str, token: str | None = None) -> Files:
    """Return the files of a run's repository by path. Writes nothing.

    These are the adapter (or full model) as safetensors, tokenizer with chat template, recipe, record, plots and the
    card; never a second adapter, optimizer, checkpoint, cache or data.

    Args:
        run: the run as others see it, from `Run.on`.
        card: text of README.md.
        token: access token that no file may contain.

    Raises:
        RunError: no weights as safetensors, weights that are damaged or can't be those that were trained, a file that
            contains an access token or key, or a link that leaves the folder.
    """
    weights = _ADAPTER if run.adapter else _MODEL
    patterns = (*weights, *_TOKENIZER, *_RECORD)
    found = sorted(path for pattern in patterns for path in run.folder.glob(pattern) if path.is_file())
    for path in found:
        if not path.resolve().is_relative_to(run.folder.resolve()):
            raise RunError(
                f"{path} is a link to {path.resolve()}, outside of the run's folder, and a push would publish that "
                "file. Put a copy in its place, or remove the link."
            )
    files: Files = {path.relative_to(run.folder).as_posix(): path for path in found}
    if not any(name.endswith(".safetensors") for name in files):
        raise RunError(
            f"{run.folder} has no {weights[1] if run.adapter else 'model.safetensors'}. Only safetensors are pushed; "
            "save a .bin model again as safetensors."
        )
    _check_weights(run)
    contents = {ADAPTER_CONFIG: run.adapter, RESULT: run.result, MERGE: run.merge, REFERENCE: run.reference}
    files |= {name: _json(content) for name, content in contents.items() if content}
    if run.recipe:
        files[RECIPE] = dump_yaml(dict(run.recipe)).encode()
    files[CARD] = card.encode()
    _refuse_secrets(files, token)
    return files


def _check_weights(run: Run) -> None:
    from ..modeling.adapter_file import check_adapter_file
    from ..modeling.weight_files import check_values, weight_files

    if run.adapter:
        check_adapter_file(run.folder, run.adapter, RunError)
        return
    for path in weight_files(run.folder, RunError):
        check_values(path, RunError)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _refuse_secrets(files: Files, token: str | None) -> None:
    for name, content in files.items():
        if name.endswith((".safetensors", ".png")):
            continue
        text = content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8", errors="replace")
        kind = "access token" if token and token in text else next((kind for kind, _ in secrets_in(text)), None)
        if kind is not None:
            raise RunError(
                f"{name} contains what looks like a secret ({kind}). Remove it from the file, and revoke it: it was on "
                "disk."
            )
