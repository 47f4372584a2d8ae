"""A checkpoint knows which engine wrote it: whoever can read it goes on as if never interrupted, the others say why.

Every engine (one process, DDP, FSDP2 with whole and with partial checkpoints, ZeRO-2, ZeRO-3) is given the AdamW
checkpoints of every engine, and its own on one and four processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import helpers
from tests.distributed import resuming
from tests.distributed.resuming import RESUMED, Resumed
from tests.training import support

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fsdp2_on_the_cpu")]

# All others: FSDP2.
NAMES = {"plain": "one process", "ddp": "DDP", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}
# All others: FSDP.
BACKENDS = {"plain": "NO", "ddp": "MULTI_CPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def goes_on(run: Resumed) -> bool:
    """Whether the run can read the checkpoint: the promise of docs/resuming.md."""
    if {run.source, run.engine} <= {"plain", "ddp"}:
        return True
    same_parts = not run.engine.startswith("zero") or run.processes == resuming.PROCESSES[run.source]
    return run.source == run.engine and same_parts


READABLE = [run for run in RESUMED if goes_on(run)]
REFUSED = [run for run in RESUMED if not goes_on(run)]


@pytest.fixture(scope="module")
def folder(fsdp2_on_the_cpu, tmp_path_factory) -> Path:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("resuming")
    model = helpers.save_tiny_model(folder / "model")
    environment = {"PYTHONPATH": os.pathsep.join([str(helpers.ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    helpers.run_python("-m", "tests.distributed.resuming", model, str(folder), env=environment)
    return folder


def codes(folder: Path, name: str) -> list[int]:
    found: list[int] = json.loads((folder / f"{name}.codes.json").read_text())
    return found


def errors(folder: Path, name: str) -> list[list[str]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.[0-9].json"))]


@pytest.mark.parametrize("run", READABLE, ids=str)
def test_resumed_is_uninterrupted(run, folder):
    assert codes(folder, str(run)) == [0] * run.processes, errors(folder, str(run))
    whole = torch.load(folder / f"{run.case}-{run.source}.pt", weights_only=False)["weights"]
    result = torch.load(folder / f"{run}.pt", weights_only=False)
    assert result["engine"] == BACKENDS.get(run.engine, "FSDP")
    support.assert_same_tensors(result["weights"], whole, rtol=2e-6)  # of the largest weight; rounding of other sums


@pytest.mark.parametrize("run", REFUSED, ids=str)
def test_refused_on_every_rank(run, folder):
    """No rank hangs, none ends well, and each names both engines."""
    assert codes(folder, str(run)) == [1] * run.processes
    found = errors(folder, str(run))
    assert len(found) == run.processes
    for kind, message in found:
        assert kind == "CheckpointError", message
        then, now = (line for line in message.splitlines() if line.startswith(("  then: ", "  now:  ")))
        assert NAMES.get(run.source, "FSDP2") in then
        assert NAMES.get(run.engine, "FSDP2") in now
        if run.source != run.engine:
            assert ("STATE_DICT" in then) == run.source.startswith("fsdp2")


def test_the_runs_move_the_weights(folder):
    """Show that the comparison can fail: the steps after the checkpoint change the weights by more than it allows."""
    end = torch.load(folder / "dpo-plain.pt", weights_only=False)["weights"]
    middle = load_file(folder / "runs" / "dpo-plain" / f"checkpoint-{resuming.SAVED}" / "model.safetensors")
    with pytest.raises(AssertionError, match="off by"):
        support.assert_same_tensors({name: middle[name] for name in end}, end, rtol=1e-4)


def test_every_pair_is_here():
    assert {(run.source, run.engine) for run in RESUMED} == {(a, b) for a in resuming.ENGINES for b in resuming.ENGINES}
    assert {run.engine for run in READABLE if run.processes == 4} == {"fsdp2", "fsdp2_parts"}
