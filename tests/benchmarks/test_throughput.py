"""The table of docs/performance.md is that of the committed results, and the targets of the project hold in it."""

import json

import pytest

from tests.helpers import ROOT, load_script

RESULTS = json.loads((ROOT / "benchmarks/results/throughput-smollm2-135m-instruct-cpu-sdpa.json").read_text())


@pytest.fixture(scope="module")
def throughput():
    return load_script("benchmarks/throughput.py")


def test_the_docs_show_the_results(throughput):
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = page.partition("<!-- throughput:begin -->\n")[2].partition("<!-- throughput:end -->")[0]
    assert shown == throughput.markdown(RESULTS)


@pytest.mark.parametrize("shape", RESULTS["shapes"])
def test_nothing_is_slower_or_needs_more_memory(shape):
    """About committed figures, not about this machine."""
    result = RESULTS["shapes"][shape]
    assert result["ratio"] >= 1
    assert result["ours"]["peak_gib"] <= result["trl"]["peak_gib"]
    assert result["loss_difference"] < 1e-4
    assert len(result["ratios"]) >= 5


def test_the_token_bound_by_hand(throughput, monkeypatch):
    """All pairs of 4 are 6 pairs of two sequences of 390 tokens; shared, it is the prompt once and 4 responses."""
    rows = [{"prompt_ids": [0] * 350, "completion_ids": [[0] * 40] * 4, "ranks": [0, 1, 2, 3]}]
    monkeypatch.setattr(throughput.Shape, "rows", lambda self, vocabulary: rows)
    assert throughput.token_bound(throughput.SHAPES["tldr_k4"]) == pytest.approx(12 * 390 / (350 + 4 * 40))
