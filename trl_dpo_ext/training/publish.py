"""The record and the card of a run, and pushes to the Hub: at the end, and of checkpoints while training."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from transformers.trainer_utils import HubStrategy

from .._compat.transformers import loaded_from
from ..hub import RunError, hub_id, push_run, read_run, training_record, write_card
from ..record import hardware, versions, write_json
from .config import PreferenceConfig
from .errors import ConfigError
from .safety.checkpoint import MARKER

logger = logging.getLogger(__name__)

_LAST_CHECKPOINT = "last-checkpoint"  # transformers' name for it in a repository


def write_record(trainer: Any, further: Mapping[str, Any]) -> None:
    """Write result.json, reference.json and, where a model is saved, the card into a run's output folder.

    Args:
        trainer: a `PreferenceTrainer`, on the main process.
        further: more keys of result.json.
    """
    output = Path(trainer.args.output_dir)
    trainer.reference_identity.save(output)
    write_json(output / "result.json", {**run_result(trainer), **further})
    if any((output / name).exists() for name in ("adapter_config.json", "config.json")):
        write_card(output)


def run_result(trainer: Any) -> dict[str, Any]:
    """Return the content of result.json: last metrics, losses, data, versions and hardware."""
    logged = [entry for entry in reversed(trainer.state.log_history) if "loss" in entry]
    return {
        "metrics": logged[0] if logged else {},
        **training_record(trainer),
        "versions": versions(),
        "hardware": hardware(),
    }


def push_output(trainer: Any, message: str | None, **options: Any) -> str:
    """Push a run's output folder, and return the address of the commit; the main process only.

    Args:
        trainer: a `PreferenceTrainer` whose model and record are saved.
        message: of the commit.
        **options: of `push_run`; None takes the configuration's.
    """
    return _push(trainer, trainer.args.output_dir, message=message, **options)


def push_checkpoint(trainer: Any, folder: Path) -> None:
    """Push a checkpoint as `hub_strategy` says. A push that fails is logged, and training goes on."""
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    message = f"Training in progress, step {trainer.state.global_step}"
    try:
        _push(trainer, folder, message=message, result=run_result(trainer))
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            name = _LAST_CHECKPOINT if last else folder.name
            files = _checkpoint_files(folder, args.hub_base_model)
            HfApi(token=args.hub_token).create_commit(
                trainer.hub_model_id,
                [CommitOperationAdd(f"{name}/{path}", content) for path, content in files.items()],
                commit_message=f"{message}, checkpoint",
                revision=args.hub_revision,
            )
    except Exception as error:
        logger.warning(f"Step {trainer.state.global_step} was not pushed, training goes on. {error}")


def _push(trainer: Any, folder: str | Path, **options: Any) -> str:
    args = trainer.args
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
    repo = getattr(trainer, "hub_model_id", None) or args.hub_model_id or Path(args.output_dir).absolute().name
    base = {"base_model": args.hub_base_model, "base_revision": args.hub_base_revision}
    return push_run(folder, repo, **{**defaults, **base, **given})


def check_push(model: Any, args: PreferenceConfig) -> None:
    """Refuse to start a run that is to be pushed, and whose base model has no name on the Hub.

    Raises:
        ConfigError: trained from a path, without `hub_base_model`.
    """
    name = model if isinstance(model, str) else loaded_from(getattr(model, "config", None))
    if args.hub_base_model is not None:
        if not hub_id(args.hub_base_model):
            raise ConfigError(
                f"hub_base_model={args.hub_base_model!r} is no name on the Hub; it looks like OWNER/NAME."
            )
    elif args.push_to_hub and not (name and hub_id(name)):
        raise ConfigError(
            f"push_to_hub is set, and the model is {name!r}, a path on this machine: nobody else could load what is "
            "pushed. Set hub_base_model to its name on the Hub (OWNER/NAME)."
        )


def _checkpoint_files(folder: Path, base_model: str | None) -> dict[str, Path | bytes]:
    """Return a checkpoint's files for the Hub: all that resuming needs, the base model by its name there."""
    # training_args.bin holds the access token, README.md is PEFT's and may name a local path; no resume needs either.
    left_out = ("training_args.bin", "README.md", MARKER)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out]
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}
    if base_model is not None:
        seen = read_run(folder).on(base_model, None)
        for name, content in (("adapter_config.json", seen.adapter), ("reference.json", seen.reference)):
            if name in files:
                files[name] = json.dumps(dict(content), indent=2).encode()
    marker = json.loads((folder / MARKER).read_text())
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in files.items()}
    return {**files, MARKER: json.dumps({**marker, "files": sizes}).encode()}


def checkpoint_from_hub(repo: str, args: PreferenceConfig) -> str:
    """Download the last checkpoint that `hub_strategy="checkpoint"` pushed, and return its folder.

    Raises:
        RunError: the repository holds none.
    """
    with args.main_process_first(desc="downloading the checkpoint"):
        folder = snapshot_download(
            repo, revision=args.hub_revision, token=args.hub_token, allow_patterns=[f"{_LAST_CHECKPOINT}/*"]
        )
    found = Path(folder) / _LAST_CHECKPOINT
    if not found.is_dir():
        raise RunError(
            f"resume_from_hub={repo!r} has no folder {_LAST_CHECKPOINT}. A run leaves one there with "
            "push_to_hub: true, hub_strategy: checkpoint and a save_strategy."
        )
    return str(found)
