"""Pushes a run's folder to the Hub in one commit, and changes nothing in the folder."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..record import scrub
from .hub_metadata import EVAL_RESULTS, eval_results, license_of
from .model_card import make_card
from .pushed_files import CARD, base_model_id, files_to_push
from .run_folder import read_run

logger = logging.getLogger(__name__)
T = TypeVar("T")

# huggingface_hub retries some requests itself. These are tries of the whole push, which cost little: the Hub gets each
# file only once.
_TRIES = 5


class PushError(RuntimeError):
    """A push that didn't finish. The message says why, and the command that finishes it."""


def push_run(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    token: str | None = None,
    message: str = "Upload with trl-dpo-ext",
    result: Mapping[str, Any] | None = None,
) -> str:
    """Push the adapter or model of a run's folder, with its tokenizer, record and card, in one commit.

    All checks come before the first request to the Hub. Call this in the main process only.

    Args:
        folder: folder of a finished run, or of a merged model.
        repo: "owner/name", or a name in your own namespace; created if missing.
        private: make the repository private; an existing public one is then refused.
        revision: branch to commit to, created if missing; by default `main`.
        base_model: Hub id of the base model; needed if the run was trained from a local path.
        base_revision: revision of the base model.
        token: access token; by default that of `hf auth login` or HF_TOKEN.
        message: commit message.
        result: content of result.json for a folder without one, such as a checkpoint.

    Returns:
        The address of the commit.

    Raises:
        RunError: the folder can't be pushed as it is; the message says what to do.
        PushError: the Hub refused or can't be reached; the message has the command that finishes the push.
    """
    run = read_run(folder)
    if result is not None and not run.result:
        run = replace(run, result=result)
    name, name_revision = base_model_id(run, base_model, base_revision)
    token = token or get_token()
    card = make_card(run, base_model=name, base_revision=name_revision, repo=repo)
    seen = run.on(name, name_revision)
    files = files_to_push(seen, card, token)
    if (results := eval_results(seen)) is not None:
        files[EVAL_RESULTS] = results.encode()
    api = HfApi(token=token, library_name="trl-dpo-ext")

    def push() -> str:
        full = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(full).private:
            raise PushError(
                f"{full} is public, and --private was given. Use another repository, or leave out --private."
            )
        if revision is not None:
            api.create_branch(full, branch=revision, exist_ok=True)
        license = license_of(api, name, name_revision)
        card = make_card(run, base_model=name, base_revision=name_revision, repo=repo, license=license)
        files[CARD] = card.encode()
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return str(api.create_commit(full, operations, commit_message=message, revision=revision).commit_url)

    try:
        return _again(push, token)
    except Exception as error:
        command = ["trl-dpo-ext", "push", str(folder), repo, *(["--private"] if private else [])]
        for option, value in (
            ("--revision", revision),
            ("--base-model", base_model),
            ("--base-revision", base_revision),
        ):
            command += [option, value] if value is not None else []
        raise PushError(
            f"The push to {repo} did not finish: {_reason(error, repo, token)}\n{folder} is complete and unchanged. "
            f"Finish the push with:\n  {shlex.join(command)}"
        ) from None  # the client's own error quotes requests


def _again(action: Callable[[], T], token: str | None) -> T:
    """Run `action`; retry after a while if the Hub is busy, fails, or the connection breaks."""
    for attempt in range(1, _TRIES):
        try:
            return action()
        except Exception as error:
            if (wait := _wait(error, attempt)) is None:
                raise
            reason = scrub(_short(error), token)
            logger.warning(f"Push, try {attempt} of {_TRIES}: {reason} Trying again in {wait:g} s.")
            time.sleep(wait)
    return action()


def _wait(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before the next try, or None if another try wouldn't help."""
    error = _cause(error)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status not in (408, 412, 429) and status < 500:  # 412: someone else committed meanwhile
            return None
        asked = error.response.headers.get("Retry-After", "")
        return float(asked) if asked.isdigit() else float(2**attempt)
    return float(2**attempt) if isinstance(error, _network_error()) else None


def _network_error() -> type[Exception]:
    # HfHubHTTPError derives from its client library's error (httpx or its successor), the base of broken connections.
    return next(base for base in HfHubHTTPError.__mro__ if base.__module__.startswith("httpx"))


def _cause(error: BaseException) -> BaseException:
    # huggingface_hub wraps the error of one of several uploads in a RuntimeError.
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _short(error: BaseException) -> str:
    error = _cause(error)
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}."
    return f"{type(error).__name__}: {error}."


def _reason(error: BaseException, repo: str, token: str | None) -> str:
    cause: Any = _cause(error)
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status == 401:
        problem = "the access token isn't valid" if token else "no access token was given"
        return f"{problem} (401). Log in with `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return f"this access token may not write to {repo} (403). Use one with write permission for that namespace."
    if status == 404:
        return f"{repo} doesn't exist, or this access token may not see it (404)."
    if status is None and not isinstance(cause, PushError):
        return scrub(f"{type(cause).__name__}: {cause}.", token)
    return scrub(str(cause).strip(), token)
