"""Write a run's record and model card, and push the run and its checkpoints to the Hub."""

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
from ..record import Record, RecordError, hardware, read_record, versions, write_json
from .config import PreferenceConfig
from .errors import ConfigError
from .safety.checkpoint_files import MARKER, checksum
from .safety.output_folder import RESULT

logger = logging.getLogger(__name__)

_LAST_CHECKPOINT = "last-checkpoint"  # transformers' name for it in the repository


def write_record(trainer: Any, extra: Mapping[str, Any]) -> None:
    """Write result.json and reference.json to a run's output folder, and a model card if a model is saved there.

    Call it on the main process only.

    Args:
        trainer: a `PreferenceTrainer`.
        extra: additional keys of result.json.
    """
    output = Path(trainer.args.output_dir)
    trainer.reference_identity.save(output)
    write_json(output / RESULT, {**run_result(trainer), **extra})
    if any((output / name).exists() for name in ("adapter_config.json", "config.json")):
        write_card(output)


def run_result(trainer: Any) -> dict[str, Any]:
    """Return the content of result.json: the last metrics, number of steps, losses, data, versions and hardware."""
    logged = [entry for entry in reversed(trainer.state.log_history) if "loss" in entry]
    return {
        "metrics": logged[0] if logged else {},
        "steps": trainer.state.global_step,
        **training_record(trainer),
        "versions": versions(),
        "hardware": hardware(),
    }


class _Ending(Record):
    """What is read of result.json to tell whether a run has ended. Those of earlier versions have no steps."""

    steps: int = 0


def recorded_steps(output: str | Path) -> int:
    """Return the steps that a run had taken when its result.json was written; 0 if it has none that can be read."""
    try:
        return read_record(Path(output) / RESULT, _Ending).steps
    except (FileNotFoundError, RecordError):
        return 0


def push_output(trainer: Any, message: str | None, **options: Any) -> str:
    """Push a run's output folder, and return the URL of the commit. Call it on the main process only.

    Args:
        trainer: a `PreferenceTrainer` whose model and record are saved.
        message: the commit message.
        **options: options of `push_run`; None means the value in the configuration.
    """
    return _push(trainer, trainer.args.output_dir, message=message, **options)


def push_checkpoint(trainer: Any, folder: Path) -> None:
    """Push a checkpoint according to `hub_strategy`. A failed push is logged and training continues."""
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
        logger.warning(
            f"The checkpoint of step {trainer.state.global_step} was not pushed; training continues. {error}"
        )


def _push(trainer: Any, folder: str | Path, **options: Any) -> str:
    args = trainer.args
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
    repo = getattr(trainer, "hub_model_id", None) or args.hub_model_id or Path(args.output_dir).absolute().name
    base = {"base_model": args.hub_base_model, "base_revision": args.hub_base_revision}
    return push_run(folder, repo, **{**defaults, **base, **given})


def check_push(model: Any, args: PreferenceConfig) -> None:
    """Check that the base model of a run that will be pushed has a Hub id.

    Raises:
        ConfigError: the model is a local path and `hub_base_model` is unset, or `hub_base_model` isn't a Hub id.
    """
    name = model if isinstance(model, str) else loaded_from(getattr(model, "config", None))
    if args.hub_base_model is not None:
        if not hub_id(args.hub_base_model):
            raise ConfigError(f"hub_base_model={args.hub_base_model!r} is not a Hub id. Use the form OWNER/NAME.")
    elif args.push_to_hub and not (name and hub_id(name)):
        raise ConfigError(
            f"push_to_hub is set, but the model is {name!r}, a path on this machine, so nobody else could load the "
            "pushed run. Set hub_base_model to the model's Hub id (OWNER/NAME)."
        )


def _checkpoint_files(folder: Path, base_model: str | None) -> dict[str, Path | bytes]:
    """Return a checkpoint's files for the Hub: all that resuming needs, with the base model's Hub id for its path."""
    # training_args.bin holds the access token, and PEFT's README.md may name a local path. Resuming needs neither.
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
    sums = {name: checksum(content) for name, content in files.items()}
    return {**files, MARKER: json.dumps({**marker, "files": sizes, "checksums": sums}).encode()}


def checkpoint_from_hub(repo: str, args: PreferenceConfig) -> str:
    """Download the last checkpoint pushed with `hub_strategy="checkpoint"`, and return its folder.

    Raises:
        RunError: the repository has no such checkpoint.
    """
    with args.main_process_first(desc="downloading the checkpoint"):
        folder = snapshot_download(
            repo, revision=args.hub_revision, token=args.hub_token, allow_patterns=[f"{_LAST_CHECKPOINT}/*"]
        )
    found = Path(folder) / _LAST_CHECKPOINT
    if not found.is_dir():
        raise RunError(
            f"resume_from_hub={repo!r} has no folder {_LAST_CHECKPOINT}. Only runs with push_to_hub: true, "
            "hub_strategy: checkpoint and a save_strategy push one."
        )
    return str(found)
