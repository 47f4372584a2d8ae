"""Two gloo processes give the same results as one (float32), for every trainer, and can resume each other's runs.

The data has ragged K, ties, and different row layouts on each rank. A mean of the ranks' means would give a different
result, and a collective that only one rank reaches would hang.
"""

from __future__ import annotations

import json

import pytest
import torch

from tests import helpers
from tests.training import support, two_ranks

pytestmark = pytest.mark.slow  # every test waits for the two processes


@pytest.fixture(scope="module")
def runs(tiny_model_dir, tmp_path_factory):
    """Run one process, then two that resume its checkpoints. Return the first's runs, and the folder of the others."""
    folder = tmp_path_factory.mktemp("two_ranks")
    one = {name: two_ranks.run(name, tiny_model_dir, f"{folder}/one/{name}", batch_size=4) for name in two_ranks.RUNS}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    helpers.run_python(*launcher, "tests/training/two_ranks.py", tiny_model_dir, str(folder))
    return one, folder


def loaded(folder, case: str) -> tuple[support.Run, list[float]]:
    saved = torch.load(folder / f"{case}.pt")
    run = support.Run(**saved["run"])
    # DDP names the parameters of the model it wraps.
    run.gradients = [{key.removeprefix("module."): value for key, value in step.items()} for step in run.gradients]
    return run, saved["means"]


@pytest.mark.parametrize("name", two_ranks.RUNS)
def test_two_processes_are_one(name, runs):
    one, trainer = runs[0][name]
    two, saved_means = loaded(runs[1], name)
    for step in range(2):
        support.assert_same_tensors(two.gradients[step], one.gradients[step])
    support.assert_same_tensors(two.weights, one.weights)
    assert [log.keys() for log in two.logs] == [log.keys() for log in one.logs]
    support.assert_same_logs(two.logs, one.logs)
    means = [mean.value for mean in trainer.objective.running_means.values()]
    assert saved_means == pytest.approx(means, rel=1e-5, abs=1e-6)  # rewards: differences of log-probs
    assert bool(means) == (name == "running_means")
    with open(runs[1] / "two" / name / "checkpoint-2" / "run_state.json") as file:
        kept = json.load(file)["running_means"]
    assert [kept[loss]["value"] for loss in trainer.objective.running_means] == saved_means


def assert_same_rest(rest: support.Run, whole: support.Run) -> None:
    """Compare a run resumed after the first step with an uninterrupted one."""
    assert len(rest.gradients) == 1
    support.assert_same_tensors(rest.gradients[0], whole.gradients[1])
    support.assert_same_tensors(rest.weights, whole.weights)
    support.assert_same_logs(rest.logs[-1:], whole.logs[-1:])


@pytest.mark.parametrize("name", two_ranks.RESUMED)
def test_two_processes_go_on_where_one_stopped(name, runs):
    one, _ = runs[0][name]
    two, _ = loaded(runs[1], f"{name}-resumed")
    assert_same_rest(two, one)


@pytest.mark.parametrize("name", two_ranks.RESUMED)
def test_one_process_goes_on_where_two_stopped(name, runs, tiny_model_dir, tmp_path):
    one, _ = runs[0][name]
    checkpoint = str(runs[1] / "two" / name / "checkpoint-1")
    rest, _ = two_ranks.run(name, tiny_model_dir, str(tmp_path), batch_size=4, resume=checkpoint)
    assert_same_rest(rest, one)


def test_the_runs_differ(runs):
    """Show that the comparisons above can fail."""
    ends = [run.weights["model.embed_tokens.weight"] for run, _ in runs[0].values()]
    assert not any(torch.allclose(ends[i], ends[j], rtol=1e-5) for i in range(len(ends)) for j in range(i))
