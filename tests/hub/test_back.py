"""A pushed adapter loads elsewhere, with libraries that don't know this one."""

import shutil

import pytest
import torch
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM

from tests import helpers
from tests.hub import standin, support
from tests.hub.load_elsewhere import logits

ADAPTER, BASE = "me/adapter", "me/base"


@pytest.fixture
def elsewhere(hub, tmp_path):
    """The environment of a process that talks to the stand-in, with nothing cached."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": standin.WRITER,
        "HF_HOME": str(tmp_path / "home"),
    }


@pytest.mark.slow
def test_pushed_deleted_and_loaded_elsewhere_it_is_the_same_model(hub, elsewhere, tmp_path, tiny_model_dir):
    HfApi().create_repo(BASE)
    HfApi().upload_folder(repo_id=BASE, folder_path=tiny_model_dir)
    run = support.save_adapter(tmp_path / "run", tiny_model_dir, quantized=False)
    support.add_record(run)
    torch.save(logits(AutoPeftModelForCausalLM.from_pretrained(run)), tmp_path / "expected.pt")
    command = ["-m", "trl_dpo_ext", "push", str(run), ADAPTER, "--private", "--base-model", BASE]
    assert f"Pushed: {hub.url}/{ADAPTER}/commit/" in helpers.run_python(*command, env=elsewhere)
    shutil.rmtree(run)
    script = ["-m", "tests.hub.load_elsewhere", ADAPTER, str(tmp_path / "expected.pt"), str(tmp_path / "on")]
    assert "the same logits" in helpers.run_python(*script, env=elsewhere)
