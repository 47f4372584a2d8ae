"""Traps at the kinks of losses: the first step, where policy and reference agree, is exactly on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, fresh, put_back
from trl_dpo_ext.losses.families import batch_coupled, minor_dpo, protect_chosen

BETA = 0.1


class _Clamp(torch.autograd.Function):
    """`clamp(min=0)` as torch 2.14 differentiates it: the gradient is 0 at exactly 0."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (x > 0)


def clamp_of_torch_2_14(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(minor_dpo, "positive_part", lambda x, slope_at_zero: _Clamp.apply(x))


class _ClampUpTo213(_Clamp):
    """`clamp(min=0)` as torch up to 2.13 differentiates it: the gradient is 1 at exactly 0."""

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * (x >= 0)


def penalty_with_a_gradient_at_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(protect_chosen, "positive_part", lambda x, slope_at_zero: _ClampUpTo213.apply(x))


def first_argument_takes_all(patch: pytest.MonkeyPatch) -> None:
    """`where(a <= b, a, b)` for the minimum: at a tie, only the chosen response is trained."""
    patch.setattr(protect_chosen, "smaller", lambda a, b: torch.where(a <= b, a, b))


def sort_forgets_ties(patch: pytest.MonkeyPatch) -> None:
    """Equal values are looked up by value: each is matched with the first of its equals, so the others get nothing."""

    def first_of_equals(values: Tensor, others: Tensor) -> Tensor:
        return others.sort().values[torch.searchsorted(values.sort().values.contiguous(), values)]

    patch.setattr(batch_coupled, "_of_same_rank", first_of_equals)


def first_step(loss: str, model_dir: str, folder: Any, **hyperparameters: float) -> tuple[dict[str, Tensor], list[Any]]:
    """The gradients of the first step of training on four pairs, and the pairs."""
    trainer = support.trainer(
        fresh(model_dir),
        folder,
        helpers.pair_dataset(4),
        loss_type=loss,
        loss_kwargs={loss: {"beta": BETA, **hyperparameters}},
        max_steps=1,
        per_device_train_batch_size=4,
    )
    rows = list(trainer.train_dataset)
    (gradients,) = support.train(trainer).gradients
    return gradients, rows


def weighted(model_dir: str, rows: list[Any], chosen: float, rejected: float) -> dict[str, Tensor]:
    """The gradient of the mean over rows of chosen * log pi(y_w) + rejected * log pi(y_l), from plain forwards."""
    model = fresh(model_dir)
    total = torch.zeros(())
    for row in rows:
        for rank, weight in ((0, chosen), (1, rejected)):
            prompt, completion = row["prompt_ids"], row["completion_ids"][row["ranks"].index(rank)]
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1)[range(len(completion)), completion]
            total = total + weight * logps.sum() / len(rows)
    total.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def check(loss: str, slopes: tuple[float, float], model_dir: str, folder: Any, **hyperparameters: float) -> None:
    gradients, rows = first_step(loss, model_dir, folder, **hyperparameters)
    support.assert_same_tensors(gradients, weighted(model_dir, rows, *slopes), 1e-4)


@bugs(clamp_of_torch_2_14)
def test_trap_19_minor_dpo_s_first_step_is_a_full_dpo_step(bug, monkeypatch, tiny_model_dir, tmp_path):
    """With a gradient of 0 at 0, the whole rejected half of the first step is missing."""
    with put_back(bug, monkeypatch):
        check("minor_dpo", (-BETA / 2, BETA / 2), tiny_model_dir, tmp_path)


@bugs(penalty_with_a_gradient_at_zero)
def test_trap_19_dpop_s_first_step_is_a_plain_dpo_step(bug, monkeypatch, tiny_model_dir, tmp_path):
    """With a gradient of 1 at 0, the penalty's weight of 50 multiplies the first step by 51."""
    with put_back(bug, monkeypatch):
        check("dpop", (-BETA / 2, BETA / 2), tiny_model_dir, tmp_path, lam=50.0)


@bugs(first_argument_takes_all)
def test_trap_19_balanced_po_s_first_step_trains_both_responses(bug, monkeypatch, tiny_model_dir, tmp_path):
    """At a tie, the chosen and the rejected side get half each."""
    with put_back(bug, monkeypatch):
        check("balanced_po", (-BETA / 4, 0.3 * BETA / 4), tiny_model_dir, tmp_path, alpha=0.3)


@bugs(sort_forgets_ties)
def test_trap_19_aot_unpaired_s_first_step_trains_every_rejected_response(bug, monkeypatch, tiny_model_dir, tmp_path):
    """All log-ratios are equal at the first step, and still each rejected response is matched once."""
    with put_back(bug, monkeypatch):
        check("aot_unpaired", (-BETA / 2, BETA / 2), tiny_model_dir, tmp_path)
