"""FSDP2, ZeRO-2 and ZeRO-3 on two processes of the CPU, launched with this project's configs, equal one process."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import helpers
from tests.distributed import cases
from tests.training import support

ENGINES = {"fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return cases.save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, models, tmp_path_factory) -> tuple[str, Path, dict[str, Any]]:
    """An engine's name, its folder, and the results of all cases, from one launch."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    if name == "fsdp2":
        request.getfixturevalue("fsdp2_on_the_cpu")
    config = helpers.ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    script = ["--main_process_port", str(helpers.free_port()), "tests/distributed/sharded.py", models, str(folder)]
    environment = {"PYTHONPATH": os.pathsep.join([str(helpers.ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    helpers.run_python(*launch, *script, env=environment)
    return name, folder, torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory) -> dict[str, tuple[support.Run, str | None]]:
    """The same cases in one process, with the whole step in one micro-batch; and the reference's fingerprint."""
    folder = tmp_path_factory.mktemp("alone")
    results = {}
    for case in cases.CASES:
        trainer = cases.trainer(case, models, str(folder / case), 1)
        results[case] = support.train(trainer), trainer.reference_identity.fingerprint
    return results


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
def test_a_case_is_that_of_one_process(case, engine, alone):
    name, _, results = engine
    result, (expected, reference) = results[case], alone[case]
    assert "error" not in result, result.get("error")
    assert result["engine"] == ENGINES[name]
    losses = [log["loss"] for log in result["logs"]]
    assert losses == pytest.approx(expected.losses, rel=1e-5)
    assert len(losses) == 2
    for found, gradients in zip(result["gradients"], expected.gradients, strict=True):
        support.assert_same_tensors(found, gradients)
    # Adam divides by the size of the gradients, so their rounding errors move the weights.
    weights = {n: weight for n, weight in expected.weights.items() if n in result["weights"]}
    support.assert_same_tensors(result["weights"], weights, rtol=1e-4)
    assert expected.gradients[0].keys() <= weights.keys()
    assert result["reference"] == reference
    for log, other in zip(result["logs"], expected.logs, strict=False):
        for metric in ("rewards/margins", "logps/chosen", "entropy"):
            assert log[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-5), metric


@pytest.mark.slow
def test_a_run_in_which_no_weight_changes_stops(engine):
    name, _, results = engine
    known = "whether they had gradients is unknown" if name.startswith("zero") else r"they had gradients \(norm"
    said = rf"TrainingError: Step 1: none of the \d+ trainable tensors changed .*{known}"
    assert re.search(said, results["stuck"]["error"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dpo", "lora", "qlora", "tied"])
def test_what_is_saved_is_what_is_in_memory(case, engine):
    _, folder, results = engine
    saved = folder / case / "saved"
    (file,) = [path for path in saved.iterdir() if path.name in ("model.safetensors", "adapter_model.safetensors")]
    weights = {name.replace(".default", ""): value for name, value in results[case]["weights"].items()}
    if case == "tied":  # one weight under two names
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    found = load_file(file)
    assert len(found) >= 8
    for name, value in found.items():
        torch.testing.assert_close(value.float(), weights[name], rtol=0, atol=0)
