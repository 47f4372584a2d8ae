"""Stored reference log-probs are pushed and pulled over HTTP, with the stand-in."""

from __future__ import annotations

import datasets
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from tests import helpers
from tests.hub import standin
from tests.training import support
from tests.traps.support import fresh
from trl_dpo_ext.hub import PushError
from trl_dpo_ext.hub.share_reference_cache import pull_cache, push_cache

REPO = "me/log-probs"


@pytest.fixture(scope="module")
def stored(tiny_model_dir, tmp_path_factory):
    """The folder that a run has filled, with something damaged and something half written in it."""
    root = tmp_path_factory.mktemp("here")
    settings = {"precompute_ref_log_probs": True, "ref_cache_dir": str(root)}
    support.trainer(tiny_model_dir, root, helpers.ranked_dataset(6), **settings)
    (folder,) = root.iterdir()
    (folder / "0123456789abcdef0123456789abcdef.arrow").write_bytes(b"damaged")
    (folder / "fedcba.tmp").write_bytes(b"half")
    return folder


@pytest.mark.usefixtures("no_head_check")
def test_a_run_elsewhere_compares_a_few_and_computes_nothing(hub, stored, tiny_model_dir, tmp_path):
    address = push_cache(stored, REPO)
    assert address.startswith(f"{hub.url}/")
    assert hub.repos[REPO].private
    (name,) = set(hub.repos[REPO].files("main")) - {".gitattributes"}
    assert name.partition("/")[0] == stored.name

    assert pull_cache(REPO, tmp_path / "there") == [tmp_path / "there" / stored.name]
    model, forwards = fresh(tiny_model_dir), []
    model.get_input_embeddings().register_forward_hook(lambda *_: forwards.append(1))
    settings = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "there")}
    support.trainer(model, tmp_path, helpers.ranked_dataset(6), **settings)
    assert len(forwards) == 1  # a few responses, to see that the values are this reference's
    support.trainer(model, tmp_path, helpers.ranked_dataset(6), **settings)
    assert len(forwards) == 1


def test_pushing_again_sends_nothing_again(hub, stored, tmp_path):
    push_cache(stored, REPO)
    uploads = len(hub.uploads)
    push_cache(stored, REPO)
    assert len(hub.uploads) == uploads > 0


def test_the_repository_is_a_dataset(hub, stored, tmp_path):
    push_cache(stored, REPO)
    folder = HfApi().snapshot_download(REPO, repo_type="dataset")
    rows = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path))
    assert rows.column_names == ["key", "logps"]
    assert len(rows) == 19
    assert min(len(row) for row in rows["logps"]) > 1


def test_a_public_repository_is_refused_unless_it_is_meant(hub, stored):
    hub.repos[REPO] = standin.Repo(private=False)
    hub.repos[REPO].commit("main", {})
    with pytest.raises(PushError, match=r"public.*private=False"):
        push_cache(stored, REPO)
    assert not hub.repos[REPO].files("main")
    push_cache(stored, REPO, private=False)
    assert hub.repos[REPO].files("main")


def test_a_folder_without_log_probs(hub, stored, tmp_path):
    for folder in (tmp_path, stored.parent, tmp_path / "nowhere-float32"):
        with pytest.raises(FileNotFoundError, match="FINGERPRINT-PRECISION"):
            push_cache(folder, REPO)
    assert not hub.requests


def test_a_repository_without_log_probs(hub, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        pull_cache(REPO, tmp_path)
    hub.repos[REPO] = standin.Repo(private=True)
    hub.repos[REPO].commit("main", {"README.md": b"#", "data/more/x.arrow": b"", "x.arrow": b""})
    with pytest.raises(FileNotFoundError, match=f"{REPO} holds no"):
        pull_cache(REPO, tmp_path)
