"""Every prompt of a step has the same weight, however the step is split into micro-batches.

K varies between prompts, so a mean of micro-batch means would give a different result.
"""

from __future__ import annotations

import pytest
import torch

from tests import helpers
from tests.training import support

# A listwise loss, a pairwise one over the pairs of each prompt, and one without a reference.
LOSSES = {"loss_type": ["plackett_luce", "dpo", "simpo"], "loss_weights": [1.0, 2.0, 0.5]}


def run(model: str, folder, micro_batch: int, steps: int, *, rows: int = 16, **settings) -> support.Run:
    """Run two steps over `rows` prompts, in the order given by the seed."""
    trainer = support.trainer(
        model,
        folder,
        helpers.ranked_dataset(rows, ties=True),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=steps,
        max_steps=2,
        optim="sgd",  # Adam's step doesn't depend on the gradient's scale
        **settings,
    )
    return support.train(trainer)


def test_eight_prompts_in_micro_batches(tiny_model_dir, tmp_path):
    whole = run(tiny_model_dir, tmp_path, 8, 1, **LOSSES)
    for micro_batch, steps in ((4, 2), (1, 8)):
        parts = run(tiny_model_dir, tmp_path, micro_batch, steps, **LOSSES)
        assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
        for step in range(2):
            support.assert_same_tensors(parts.gradients[step], whole.gradients[step])
        support.assert_same_tensors(parts.weights, whole.weights)


@pytest.mark.parametrize("layout", ["padded", "shared_packed"])
def test_a_smaller_last_micro_batch(layout, tiny_model_dir, tmp_path):
    settings = {"rows": 13, **LOSSES, **support.LAYOUTS[layout]}
    whole = run(tiny_model_dir, tmp_path, 8, 1, **settings)
    parts = run(tiny_model_dir, tmp_path, 4, 2, **settings)  # 4 + 4 prompts, then 4 + 1
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    for step in range(2):
        support.assert_same_tensors(parts.gradients[step], whole.gradients[step])
    support.assert_same_tensors(parts.weights, whole.weights)


def test_the_mean_of_micro_batch_means_is_another_number(tiny_model_dir, tmp_path):
    """Show that the tests above can fail."""
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.ranked_dataset(5), loss_type="plackett_luce")
    with torch.no_grad():
        whole, four, one = (
            trainer.compute_loss(trainer.model, support.batch(trainer, rows)).item()
            for rows in (slice(5), slice(4), slice(4, 5))
        )
    assert (4 * four + one) / 5 == pytest.approx(whole, rel=1e-5)
    assert abs((four + one) / 2 - whole) > 0.1
