"""benchmarks/memory.py runs, on a tiny model: both sides, the estimate beside them, and where memory runs out."""

import json

import pytest
import torch

from tests.helpers import ROOT, load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/memory.py")


@pytest.mark.slow
def test_both_sides_take_their_steps(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "in_a_fresh_process", benchmark.run)  # a new process takes ten times as long
    benchmark.main(["--cases", "tiny", "--steps", "2", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "memory-cpu.json").read_text())["rows"]
    assert set(rows) == {"tiny ours single uncapped", "tiny trl single uncapped"}
    for row in rows.values():
        assert row["steps"] == 2
        assert row["tokens_per_second"] * row["seconds_per_step"] == pytest.approx(32 + 3 * 32)
        assert row["peak_resident_gib"] > 0
        assert row["versions"]["bitsandbytes"] != "not installed"
    assert 0 < rows["tiny ours single uncapped"]["estimated_allocated_gib"] < 0.1
    assert "tiny, trl, single, no GB cap: peak" in capsys.readouterr().out


def test_the_model_is_the_one_the_estimate_is_of(benchmark, tmp_path):
    setup = benchmark.setup_of(benchmark.CASES["tiny"], "single", str(tmp_path))
    model = benchmark.random_model(setup, torch.device("cpu"))
    parts = benchmark.estimate(setup).parts
    packed = [p for p in model.parameters() if type(p).__name__ == "Params4bit"]
    assert len(packed) == 3 * 7
    assert sum(p.nbytes for p in packed) == parts["4-bit weights"]
    others = sum(t.nbytes for t in (*model.parameters(), *model.buffers()) if type(t).__name__ != "Params4bit")
    assert others == parts["weights"]
    ids = torch.arange(1, 9).unsqueeze(0)
    assert model(input_ids=ids).logits.isfinite().all()


def test_running_out_of_memory_is_a_result(benchmark, monkeypatch):
    def train(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 12 GiB")

    monkeypatch.setattr(benchmark, "train", train)
    assert "Tried to allocate 2.00 GiB" in benchmark.run("tiny", "ours", "single", None, 1)["out_of_memory"]


H200 = json.loads((ROOT / "benchmarks" / "results" / "memory-nvidia-h200.json").read_text())
PAGE = (ROOT / "docs" / "memory.md").read_text()


def test_the_docs_show_the_results(benchmark):
    shown = PAGE.partition("<!-- memory-h200:begin -->\n")[2].partition("<!-- memory-h200:end -->")[0]
    assert shown == benchmark.markdown(H200)


def test_what_the_docs_say_about_the_results():
    rows = H200["rows"]
    ours = [row for row in rows.values() if row["side"] == "ours"]
    errors = [abs(row["estimated_allocated_gib"] / row["peak_allocated_gib"] - 1) for row in ours]
    assert f"at most {max(errors):.2%}".replace("%", " %") in PAGE
    reserved = [row["peak_reserved_gib"] / row["peak_allocated_gib"] - 1 for row in ours]
    assert f"reserved {min(reserved):.0%} to {max(reserved):.0%} more".replace("%", " %") in PAGE
    mine, trl = rows["llama-3.1-8b ours single 12.0"], rows["llama-3.1-8b trl single 24.0"]
    for text in (
        f"{trl['seconds_per_step']:.2f} s with TRL and {mine['seconds_per_step']:.2f} s here",
        f"{trl['peak_allocated_gib']:.2f} GiB with TRL and {mine['peak_allocated_gib']:.2f} GiB here",
    ):
        assert text in " ".join(PAGE.split())
    assert {(row["steps"], row["versions"]["torch"]) for row in rows.values()} == {(4, "2.11.0")}
