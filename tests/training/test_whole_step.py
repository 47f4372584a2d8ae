"""A step gives the same loss, gradients and metrics for every registered loss, whatever it is cut into.

Its eight prompts are one micro-batch, two, or eight; on one process, two, or four; with all responses at once, or two
at a time. K varies between prompts, and some responses are tied. The whole step in one micro-batch on one process is
computed as before, and compared with the float64 transcriptions of the papers.
"""

from __future__ import annotations

import pytest
import torch

from tests import helpers
from tests.losses.test_values import expected, groups_of, pairs_of
from tests.training import steps, support
from trl_dpo_ext.losses import get_loss
from trl_dpo_ext.testing import loss_input

COUPLED = ["aot", "aot_unpaired", "bco", "bco_unpaired", "beta_dpo", "kto", "sft"]


@pytest.fixture(scope="module")
def trainers(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_step")
    layouts = ("padded", "shared_packed")
    return {name: steps.trainer(tiny_model_dir, folder / name, **support.LAYOUTS[name]) for name in layouts}


@pytest.fixture(scope="module")
def whole(trainers):
    """The step of each case in one micro-batch, by row layout."""
    return {
        (case, layout): steps.run(trainer, case, steps.PROMPTS)
        for case in steps.CASES
        for layout, trainer in trainers.items()
    }


def assert_same(step: steps.Step, whole: steps.Step) -> None:
    support.assert_same_tensors(step.gradients, whole.gradients)
    assert step.log.keys() == whole.log.keys()
    support.assert_same_logs([step.log], [whole.log])
    assert step.running_means == pytest.approx(whole.running_means, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", steps.CASES)
def test_a_step_is_the_same_however_it_is_cut(case, trainers, whole):
    padded, shared = trainers["padded"], trainers["shared_packed"]
    assert_same(steps.run(padded, case, 4), whole[case, "padded"])
    assert_same(steps.run(shared, case, 1), whole[case, "shared_packed"])
    assert_same(steps.run(shared, case, 8, responses_per_pass=2), whole[case, "shared_packed"])
    assert_same(steps.run(padded, case, 4, responses_per_pass=1), whole[case, "padded"])


@pytest.fixture(scope="module", params=[2, 4])
def several_processes(request, tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param))
    helpers.run_python(*launcher, "tests/training/steps.py", tiny_model_dir, str(folder))
    return {key: steps.Step(**step) for key, step in torch.load(folder / "steps.pt").items()}


@pytest.mark.slow
def test_a_step_is_the_same_on_several_processes(several_processes, whole):
    assert {case for case, _ in several_processes} >= {*COUPLED, *steps.MIXES}
    for (case, cut), step in several_processes.items():
        try:
            assert_same(step, whole[case, cut.partition(",")[0]])
        except AssertionError as error:
            raise AssertionError(f"{case}, {cut}: {error}") from error


@pytest.mark.parametrize("micro_batch", [8, 1])
@pytest.mark.parametrize("name", steps.CASES[: -len(steps.MIXES)])
def test_the_loss_of_a_step_is_that_of_the_paper(name, micro_batch, trainers):
    trainer, spec = trainers["padded"], get_loss(name)
    trainer.objective = steps.objective("tokens")
    responses = support.responses(trainer, support.batch(trainer, steps.PROMPTS))
    data = loss_input(spec, responses)
    if spec.statistic is not None:
        statistic = spec.statistic(data, **spec.check({})).double().mean()
        past = steps.RUNNING_MEAN.batches / (steps.RUNNING_MEAN.batches + 1) if spec.momentum is None else spec.momentum
        data = data.replace(running_mean=past * steps.RUNNING_MEAN.value + (1 - past) * statistic)
    values = expected(spec, responses, data, steps.CHANGED.get(name, {}))
    if not spec.listwise:  # the mean over the pairs of each prompt
        counts = [len(pairs_of([group], "ties" in spec.needs)) for group in groups_of(responses)]
        values = [sum(part) / len(part) for part in torch.tensor(values).split(counts)]
    loss = steps.run(trainer, name, micro_batch).log["loss"]
    assert loss == pytest.approx(sum(map(float, values)) / steps.PROMPTS, rel=1e-5)


def test_the_losses_that_need_the_whole_step_are_known():
    assert [name for name in steps.CASES if steps.objective(name).couples_batch and name not in steps.MIXES] == COUPLED
