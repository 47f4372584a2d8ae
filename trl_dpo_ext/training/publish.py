"""What `PreferenceTrainer` does with the Hub: the card, the push at the end, and pushes while training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from transformers.trainer_utils import HubStrategy

from ..hub import RunError, hub_id, push_run, read_run, training_record, write_card
from ..record import hardware, versions, write_json
from .config import PreferenceConfig
from .errors import ConfigError
from .safety.checkpoint import MARKER

logger = logging.getLogger(__name__)

_LAST_CHECKPOINT = "last-checkpoint"  # transformers' name for it in a repository


class PushesToHub:
    """The part of `PreferenceTrainer` that overrides what transformers and TRL do with the Hub."""

    args: PreferenceConfig
    _further: dict[str, Any] | None = None

    def save_record(self: Any, **further: Any) -> None:
        """Write result.json, reference.json and the card into the output folder; the main process only.

        Args:
            **further: more keys of result.json: `recipe`, `evaluation`, `seconds`, ...
        """
        if not self.is_world_process_zero():
            return
        self._further = further
        output = Path(self.args.output_dir)
        self.reference_identity.save(output)
        write_json(output / "result.json", self._result())
        if any((output / name).exists() for name in ("adapter_config.json", "config.json")):
            write_card(output)

    def _result(self: Any) -> dict[str, Any]:
        logged = [entry for entry in reversed(self.state.log_history) if "loss" in entry]
        return {
            "metrics": logged[0] if logged else {},
            **training_record(self),
            "versions": versions(),
            "hardware": hardware(),
            **(self._further or {}),
        }

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write the card of a recorded run again; arguments of TRL's card have no place in it."""
        if self.is_world_process_zero() and self._further is not None:
            write_card(self.args.output_dir)

    def push_to_hub(
        self: Any,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, and push it with its record and card; see `trl_dpo_ext.hub.push_run`.

        Call it on all processes: the model may have to be gathered, the main one pushes. It returns when the push is
        done, whatever `blocking` says.

        Returns:
            The address of the commit, on the main process.

        Raises:
            RunError, PushError: the folder can't be pushed, or the push did not finish; the folder is whole.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self._further is None:
            self.save_record()
        return self._push(self.args.output_dir, message=commit_message, token=token, revision=revision, private=private)

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        # A push that fails must not end the training: the one at the end brings everything.
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._push(checkpoint_folder, message=message, result=self._result())
            if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = self.args.hub_strategy == HubStrategy.CHECKPOINT
                name = _LAST_CHECKPOINT if last else Path(checkpoint_folder).name
                files = _checkpoint_files(Path(checkpoint_folder), self.args.hub_base_model)
                HfApi(token=self.args.hub_token).create_commit(
                    self.hub_model_id,
                    [CommitOperationAdd(f"{name}/{path}", content) for path, content in files.items()],
                    commit_message=f"{message}, checkpoint",
                    revision=self.args.hub_revision,
                )
        except Exception as error:
            logger.warning(f"Step {self.state.global_step} was not pushed, training goes on. {error}")

    def _push(self: Any, folder: str, **options: Any) -> str:
        args = self.args
        given = {name: value for name, value in options.items() if value is not None}
        defaults = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
        repo = getattr(self, "hub_model_id", None) or args.hub_model_id or Path(args.output_dir).absolute().name
        base = {"base_model": args.hub_base_model, "base_revision": args.hub_base_revision}
        return push_run(folder, repo, **{**defaults, **base, **given})


def check_push(model: Any, args: PreferenceConfig) -> None:
    """Refuse to start a run that is to be pushed, and whose base model has no name on the Hub.

    Raises:
        ConfigError: trained from a path, without `hub_base_model`.
    """
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
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
