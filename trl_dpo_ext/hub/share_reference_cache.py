"""Shares stored reference log-probs through a dataset repository that holds the cache's folders."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from ..reference.reference_cache import ReferenceCache, default_folder
from .push import PushError


def push_cache(folder: str | Path, repo: str, *, private: bool = True, token: str | None = None) -> str:
    """Push the stored log-probs of one reference to a dataset repository; its other files stay.

    Damaged files and files of other references are left out. A file is named after its contents, so files that the
    repository already has aren't sent again, and none is replaced.

    Args:
        folder: folder of one reference in one precision, as a run's log names it.
        repo: "owner/name" of a dataset repository; created if missing.
        private: make the repository private; an existing public one is then refused.
        token: access token; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: the folder holds no log-probs.
        PushError: the repository is public, and `private` is set.
        HfHubHTTPError: the Hub refused; push again to finish.
    """
    folder = Path(folder).expanduser().resolve()
    fingerprint, _, dtype = folder.name.partition("-")
    names = ReferenceCache(folder.parent, fingerprint, dtype).files
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no reference log-probs. Give the folder that a run with precompute_ref_log_probs=True "
            "names in its log: FINGERPRINT-PRECISION, below ref_cache_dir."
        )
    api = HfApi(token=token, library_name="trl-dpo-ext")
    full = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True).repo_id
    if private and not api.repo_info(full, repo_type="dataset").private:
        raise PushError(f"{full} is public. Pass private=False to push there, or use another repository.")
    commit = api.upload_folder(
        repo_id=full,
        folder_path=folder,
        path_in_repo=folder.name,
        repo_type="dataset",
        allow_patterns=names,
        commit_message=f"Add reference log-probs of {fingerprint[:12]} in {dtype}",
    )
    return str(commit.commit_url)


def pull_cache(repo: str, root: str | Path | None = None, *, token: str | None = None) -> list[Path]:
    """Download the stored log-probs of a dataset repository into the cache. Runs check each file when they open it.

    Args:
        repo: "owner/name", as for `push_cache`.
        root: folder of all caches, `ref_cache_dir` of the runs that will read them; None is the default folder.
        token: see `push_cache`.

    Returns:
        The repository's folders, one for each reference and precision.

    Raises:
        HfHubHTTPError: the repository doesn't exist, or the token may not see it.
        FileNotFoundError: the repository holds no log-probs.
    """
    root = default_folder() if root is None else Path(root).expanduser()
    api = HfApi(token=token, library_name="trl-dpo-ext")
    files = api.list_repo_files(repo, repo_type="dataset")
    folders = sorted({file.partition("/")[0] for file in files if file.count("/") == 1 and file.endswith(".arrow")})
    if not folders:
        raise FileNotFoundError(f"{repo} holds no reference log-probs: no FINGERPRINT-PRECISION/*.arrow.")
    api.snapshot_download(repo, repo_type="dataset", local_dir=root, allow_patterns="*/*.arrow")
    return [root / folder for folder in folders]
