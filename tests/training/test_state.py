"""State of a run: the running means of losses, also in checkpoints, and TRL's own state."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests import helpers
from tests.training import support
from trl_dpo_ext.training.objective import RunningMean

LOSSES = {"loss_type": ["bco", "beta_dpo", "dpo"], "beta": 0.5}


def trainer(model_dir: str, folder: Any, **settings: Any) -> Any:
    return support.trainer(
        model_dir,
        folder,
        helpers.ranked_dataset(8),
        eval_dataset=helpers.ranked_dataset(4, seed=1),
        save_strategy="steps",
        save_steps=2,
        max_steps=4,
        learning_rate=0.03,
        **LOSSES,
        **settings,
    )


def means(trainer: Any) -> dict[str, tuple[float, int]]:
    return {name: (mean.value, mean.batches) for name, mean in trainer.objective.running_means.items()}


def test_running_means_by_hand():
    plain, moving = RunningMean(), RunningMean()
    for value in (3.0, 5.0, 1.0):
        plain.update(value, None)
        moving.update(value, 0.9)
    assert plain.value == pytest.approx(3.0)  # the mean of all
    assert moving.value == pytest.approx(0.9**2 * 0.3 + 0.9 * 0.5 + 0.1)  # starts at 0
    assert plain.batches == moving.batches == 3


@pytest.fixture(scope="module")
def whole(tiny_model_dir, tmp_path_factory):
    """Return a run of four steps with checkpoints at two and four, its logs and its state."""
    one = trainer(tiny_model_dir, tmp_path_factory.mktemp("state"))
    seen = []
    update = one.objective.__class__._with_means

    def watched(self: Any, data: Any, term: Any, training: bool) -> Any:
        data = update(self, data, term, training)
        seen.append((term.spec.name, training, data.batch_mean.item(), data.running_mean.item()))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.objective.__class__, "_with_means", watched)
        run = support.train(one)
        kept = means(one)
        one.evaluate()
    return one, run, kept, seen


def test_each_training_batch_moves_them_and_the_loss_reads_them_after(whole):
    _, _, kept, seen = whole
    for name, momentum in (("bco", None), ("beta_dpo", 0.9)):
        training = [(batch, running) for loss, mode, batch, running in seen if loss == name and mode]
        assert len(training) == 4
        batches = [batch for batch, _ in training]
        expected = 0.0
        for number, (batch, running) in enumerate(training, start=1):
            expected = sum(batches[:number]) / number if momentum is None else 0.9 * expected + 0.1 * batch
            assert running == pytest.approx(expected, rel=1e-5)
        assert kept[name] == (pytest.approx(expected, rel=1e-5), 4)
        assert abs(expected) > 1e-3
    assert "dpo" not in kept


def test_an_evaluation_leaves_them(whole):
    one, _, kept, seen = whole
    evaluated = [running for loss, mode, _, running in seen if loss == "bco" and not mode]
    assert evaluated == [pytest.approx(kept["bco"][0])] * len(evaluated)
    assert evaluated
    assert means(one) == kept


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(whole, tiny_model_dir, tmp_path):
    one, run, kept, _ = whole
    checkpoint = f"{one.args.output_dir}/checkpoint-2"
    with open(f"{checkpoint}/run_state.json") as file:
        state = json.load(file)
    saved = state["running_means"]
    assert set(saved) == {"bco", "beta_dpo"}
    assert saved["bco"]["batches"] == 2

    resumed = trainer(tiny_model_dir, tmp_path)
    assert means(resumed) == {}
    rest = support.train(resumed, resume_from_checkpoint=checkpoint)
    assert means(resumed) == {name: (pytest.approx(value, rel=1e-5), 4) for name, (value, _) in kept.items()}
    # The logs of the first two steps come from the checkpoint.
    assert rest.losses == pytest.approx(run.losses, rel=1e-5)
    assert len(rest.gradients) == 2
    for gradients, expected in zip(rest.gradients, run.gradients[2:], strict=True):
        support.assert_same_tensors(gradients, expected)
    support.assert_same_tensors(rest.weights, run.weights)

    # Without the running means, the result would differ.
    forgetful = trainer(tiny_model_dir, tmp_path)
    forgetful.run_state.on_train_begin = lambda *args, **kwargs: None
    other = support.train(forgetful, resume_from_checkpoint=checkpoint)
    assert not math.isclose(other.losses[2], run.losses[2], rel_tol=1e-4)


def test_losses_without_a_running_mean_write_nothing(tiny_model_dir, tmp_path):
    one = support.trainer(
        tiny_model_dir, tmp_path, helpers.ranked_dataset(4), save_strategy="steps", save_steps=1, max_steps=1
    )
    support.train(one)
    files = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert {"model.safetensors", "trainer_state.json", "training_args.bin"} <= files
    with open(tmp_path / "checkpoint-1" / "run_state.json") as file:
        assert json.load(file)["running_means"] == {}
