"""Lets the benchmark scripts find each other, as when one is started from the command line."""

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="session", autouse=True)
def scripts_find_each_other():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield
