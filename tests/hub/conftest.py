"""A stand-in for the Hub that huggingface_hub talks to."""

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.hub import standin


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with standin.running() as served:
        # What HF_ENDPOINT, HF_HUB_OFFLINE=0, HF_HUB_DISABLE_XET=1, HF_TOKEN and HF_HUB_CACHE would have set at import.
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", served.url)  # of its plain functions
        address = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address.replace("{endpoint}", served.url))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setenv("HF_TOKEN", standin.WRITER)
        close_session()
        # transformers keeps a client with the address of its first use
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        yield served
        close_session()


@pytest.fixture
def sleeps(monkeypatch):
    """Make waiting instant; the seconds asked for, in order."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited
