"""Where FSDP2 can't run on the CPU, the tests that launch it are skipped."""

import pytest
import torch


@pytest.fixture(scope="session")
def fsdp2_on_the_cpu() -> None:
    """Skip the test with versions of torch whose FSDP2 waits for a GPU's events (2.6)."""
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"FSDP2 of torch {torch.__version__} needs a GPU")
