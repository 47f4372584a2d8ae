"""The same environment for every test: no Hub, no GPU, one thread, a tiny model."""

import os
import tempfile

# Set before torch and the Hugging Face libraries are imported; processes that a test starts inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # fastest for tiny models, and pytest-xdist runs several processes
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Keeps what tests store away from the user's runs and from the next tests; removed when the process ends.
os.environ["HF_HOME"] = (HOME := tempfile.TemporaryDirectory(prefix="hf_home_")).name

import hypothesis
import pytest
import torch

from tests import helpers

# The same examples in every run: a rare one must not stop somebody else's change. `make attack` draws new ones.
hypothesis.settings.register_profile("tests", derandomize="ATTACK_SECONDS" not in os.environ, deadline=None)
hypothesis.settings.load_profile("tests")

torch.set_num_threads(1)
# The first backward pass starts torch's threads. After a pretended GPU (tests/memory/) it would start the GPU's too,
# and then no forked process (tests/training/forks.py) could run a backward pass.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> str:
    """A folder with a tiny Llama and its tokenizer, for `from_pretrained`. Don't write to it."""
    return helpers.save_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def tiny_bos_model_dir(tmp_path_factory) -> str:
    """As `tiny_model_dir`, but the tokenizer begins every text with BOS, as Llama's does."""
    return helpers.save_tiny_model(tmp_path_factory.mktemp("tiny_bos_model"), add_bos=True)


@pytest.fixture
def no_head_check(monkeypatch):
    """Leave out the trainer's check of the head, for tests that count the forward passes of a model."""
    monkeypatch.setattr("trl_dpo_ext.training.choose_layout.check_head", lambda *args: None)
