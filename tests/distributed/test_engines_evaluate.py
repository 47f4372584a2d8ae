"""Stored reference log-probs, rewards and frontiers: every engine on the CPU gives those of one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import helpers
from tests.distributed import evaluating
from tests.distributed.evaluating import METHODS, STORED
from tests.training import support

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fsdp2_on_the_cpu")]

SHARDED = ("fsdp2", "zero3")
OTHERS = [engine for engine in evaluating.CHOSEN if engine != "plain"]


@pytest.fixture(scope="module")
def folder(fsdp2_on_the_cpu, tmp_path_factory) -> Path:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("evaluating")
    model = helpers.save_tiny_model(folder / "model")
    data = folder / "data"
    data.mkdir()
    for seed, (split, count) in enumerate({"train": 8, "test": 6}.items()):
        lines = [json.dumps(row) for row in helpers.ranked_rows(count, seed=seed)]
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    environment = {"PYTHONPATH": os.pathsep.join([str(helpers.ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    helpers.run_python("-m", "tests.distributed.evaluating", model, str(folder), str(data), env=environment)
    return folder


def result(folder: Path, name: str) -> Any:
    for error in sorted(folder.glob(f"{name}.[0-9].json")):
        pytest.fail(json.loads(error.read_text())[1])
    return torch.load(folder / f"{name}.pt", weights_only=False)


def entries(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", [engine for engine in STORED if engine != "plain"])
def test_stored_log_probs_are_those_of_one_process(engine, method, folder):
    run, alone = result(folder, f"stored-{method}-{engine}"), result(folder, f"stored-{method}-plain")
    assert not run["second"]  # no reference model is in memory
    support.assert_same_tensors(run["weights"], alone["weights"], rtol=1e-4)
    for log, other in zip(run["logs"], alone["logs"], strict=True):
        for metric in ("loss", "rewards/margins"):
            assert log[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-5), metric
    for metric in ("eval_even_loss", "eval_even_rewards/margins"):
        assert run["eval"][metric] == pytest.approx(alone["eval"][metric], rel=1e-4, abs=1e-5), metric
    assert entries(folder / f"{method}-{engine}-cache") > 1000


def test_resuming_fills_another_cache_only_if_the_reference_is_there(folder):
    whole = result(folder, "stored-lora-fsdp2")["weights"]
    support.assert_same_tensors(result(folder, "resumed-lora-fsdp2")["weights"], whole, rtol=2e-6)
    errors = sorted(folder.glob("resumed-dpo-fsdp2.[0-9].json"))
    assert len(errors) == 2
    for error in errors:
        said = json.loads(error.read_text())[0]
        assert said.startswith("CheckpointError")
        assert "doesn't hold all reference log-probs" in said
        assert "precompute_ref_log_probs: false" in said


def evaluation(folder: Path, method: str, engine: str, file: str = "first_result.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"recipe-{method}-{engine}" / file).read_text())["evaluation"]
    return found


def assert_same_evaluation(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for side in ("before", "after"):
        assert found[side]["samples"] == expected[side]["samples"], side
        assert found[side]["reward"] == expected[side]["reward"]
        for number, value in (expected[side]["kl"] or {}).items():
            assert found[side]["kl"][number] == pytest.approx(value, rel=1e-3, abs=1e-5), (side, number)
    assert found["win_rate"] == expected["win_rate"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", OTHERS)
def test_rewards_are_those_of_one_process(engine, method, folder):
    result(folder, f"recipe-{method}-{engine}")
    alone = evaluation(folder, method, "plain")
    assert alone["before"]["samples"] != alone["after"]["samples"]  # so a comparison can fail
    assert alone["after"]["kl"]["summed"] > 1e-3
    assert_same_evaluation(evaluation(folder, method, engine), alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", OTHERS)
def test_frontiers_are_those_of_one_process(engine, method, folder):
    files = [folder / f"recipe-{method}-{name}" / "frontier.json" for name in (engine, "plain")]
    points, expected = (json.loads(file.read_text())["points"] for file in files)
    assert [point["step"] for point in points] == [0, 1, 2]
    for point, other in zip(points, expected, strict=True):
        assert point["reward"] == other["reward"]
        assert point["kl"]["summed"] == pytest.approx(other["kl"]["summed"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", SHARDED)
def test_a_resumed_run_compares_with_where_the_run_began(engine, method, folder):
    result(folder, f"again-{method}-{engine}")
    assert_same_evaluation(evaluation(folder, method, engine, "result.json"), evaluation(folder, method, engine))
