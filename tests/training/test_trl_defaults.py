"""With unset hyperparameters, each loss that TRL's `DPOTrainer` has is TRL's, in value, gradient and metrics."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from trl import DPOConfig, DPOTrainer

from tests import helpers
from tests.training import support
from tests.training.test_trl_equality import LOSS_TYPES, METRICS, moved
from trl_dpo_ext import get_loss, list_losses
from trl_dpo_ext.losses import TRL_LOSS_FIELDS

# TRL refuses its own default label_smoothing with this loss.
WITHOUT_DEFAULT = {"exo_pair"}
# What one batch adds to the log; the learning rate and the norm of the gradients belong to a step.
BATCH_METRICS = METRICS - {"loss", "learning_rate", "grad_norm"}


@pytest.fixture(scope="module")
def trainers(tiny_model_dir, tmp_path_factory):
    """Both trainers with no hyperparameter given, a policy that isn't its reference, and the same batch."""
    folder = tmp_path_factory.mktemp("defaults")
    found = []
    for trainer, config, own in (
        (support.PreferenceTrainer, support.PreferenceConfig, support.PADDED),
        (DPOTrainer, DPOConfig, {}),
    ):
        made = trainer(
            model=tiny_model_dir,
            args=config(**helpers.training_args(folder), **own),
            train_dataset=helpers.pair_dataset(6),
        )
        made.model.load_state_dict(moved(tiny_model_dir).state_dict())
        made.model.train()
        found.append((made, made._prepare_inputs(made.data_collator([made.train_dataset[i] for i in range(6)]))))
    return found


def one_step(trainer: Any, inputs: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """The loss and what else is logged for one batch, and the gradients by name."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    logged = {"loss": loss.item(), **{name: values[-1] for name, values in trainer._metrics["train"].items()}}
    trainer._metrics["train"].clear()
    return logged, {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def compare(trainers: Any, loss_types: list[str], weights: list[float] | None = None, rtol: float = 1e-5) -> None:
    (ours, our_inputs), (theirs, their_inputs) = trainers
    support.set_losses(ours, loss_type=loss_types, loss_weights=weights)
    theirs.loss_types, theirs.loss_weights = loss_types, weights or [1.0] * len(loss_types)
    logged, gradients = one_step(ours, our_inputs)
    expected, others = one_step(theirs, their_inputs)
    assert logged["loss"] == pytest.approx(expected["loss"], rel=rtol)
    support.assert_same_tensors(gradients, others, rtol)
    # TRL counts tokens over the whole run, and each trainer has seen as many batches as the other.
    assert expected.keys() >= BATCH_METRICS
    if loss_types == ["sft"]:  # no loss reads a reference: here none is run, and rewards are log-probs
        expected = {name: logged[name] if name.startswith("rewards/") else value for name, value in expected.items()}
    assert logged.keys() >= BATCH_METRICS
    support.assert_same_logs([logged], [expected], rtol)
    for name in expected.keys() & {"rewards/chosen", "rewards/rejected", "rewards/margins"}:
        # A tenth (beta) of the rounding error of log-probs of about -100; the rewards are about 1e-2.
        assert logged[name] == pytest.approx(expected[name], rel=1e-5, abs=5e-6), name


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name not in WITHOUT_DEFAULT])
def test_each_loss(loss_type, trainers):
    # Discopop divides the rounding error of log-probs of about -100 by its small tau.
    compare(trainers, [loss_type], rtol=5e-5 if loss_type == "discopop" else 1e-5)


def test_the_mix_of_mpo(trainers):
    compare(trainers, ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])


@pytest.mark.parametrize("loss_type", sorted(WITHOUT_DEFAULT))
def test_a_loss_whose_default_trl_refuses(loss_type, tiny_model_dir, tmp_path):
    data = helpers.pair_dataset(2)
    with pytest.raises(ValueError, match="Label smoothing must be greater than 0"):
        DPOTrainer(
            model=tiny_model_dir,
            args=DPOConfig(**helpers.training_args(tmp_path, loss_type=loss_type)),
            train_dataset=data,
        )
    ours = support.trainer(tiny_model_dir, tmp_path, data, loss_type=loss_type, max_steps=1)
    assert all(math.isfinite(loss) for loss in support.train(ours).losses)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_bounds_allow_trl_s_defaults(loss_type):
    spec = get_loss(loss_type)
    if spec.name not in WITHOUT_DEFAULT:
        spec.check({target: TRL_LOSS_FIELDS[field] for field, target in spec.trl_fields.items()})


def test_other_losses_keep_the_values_of_their_papers():
    """A change of this table is a change of what people train."""
    trl = {get_loss(name).name for name in LOSS_TYPES}
    others = {spec.name: spec.check({})[spec.beta] for spec in list_losses() if spec.name not in trl and spec.beta}
    assert {name: beta for name, beta in others.items() if beta != 0.1} == {
        "alphapo": 2.5,
        "bco": 0.01,
        "bco_unpaired": 0.01,
        "cal_dpo": 0.002,
        "cpo_simpo": 10.0,
        "info_nca": 0.01,
        "lipo_lambda": 0.05,
        "nca": 0.01,
        "rank_net": 0.05,
        "reference_free_plackett_luce": 2.0,
        "reference_free_rank_net": 2.0,
        "reward_aware_po": 0.2,
        "reward_aware_po_forward_kl": 0.2,
        "reward_aware_po_squared": 0.2,
        "simpo": 2.0,
        "softmax_dpo": 1.0,
    }


def test_trl_s_defaults_are_those_listed():
    assert {f.name: f.default for f in fields(DPOConfig) if f.name in TRL_LOSS_FIELDS} == dict(TRL_LOSS_FIELDS)
