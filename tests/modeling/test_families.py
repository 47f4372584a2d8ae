"""In every model family, shared and packed rows give the log-probs, loss and gradients of single sequences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.modeling.tiny import FAMILIES, by_layout, one_by_one, ragged_groups, shape_of, tiny
from trl_dpo_ext.modeling.layout import padded_layout, shared_layout

GROUPS = ragged_groups()
SHAPE = shape_of(GROUPS)
WIDTH = SHAPE[1]

LAYOUTS = {
    "padded": lambda: padded_layout(GROUPS, WIDTH),
    "shared": lambda: shared_layout(GROUPS, WIDTH, 0),
    "shared, rows filled": lambda: shared_layout(GROUPS, WIDTH),
    "shared, one row": lambda: shared_layout(GROUPS, WIDTH, 10_000),
    "shared, whole responses": lambda: shared_layout(GROUPS, WIDTH, 50, last_tokens=True),
    "packed": lambda: shared_layout(GROUPS, WIDTH, 40, share=False),
}


def ranking_loss(logps: Tensor) -> Tensor:
    """A nonlinear loss that couples the responses of a prompt and gives tokens different weights."""
    summed = (logps * torch.linspace(0.5, 1.5, logps.shape[2])).sum(2)
    return -F.logsigmoid(0.1 * (summed[:, :1] - summed[:, 1:])).sum(1).mean() - 0.01 * summed.mean()


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-4) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name] - value).norm() <= relative * value.norm() + 1e-7, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_equals_one_sequence_at_a_time(family: str) -> None:
    model = tiny(family)
    expected = one_by_one(model, GROUPS)
    expected_loss = ranking_loss(expected)
    expected_gradients = gradients(model, expected_loss)
    for name, lay_out in LAYOUTS.items():
        logps = by_layout(model, lay_out(), SHAPE)
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
        loss = ranking_loss(logps)
        torch.testing.assert_close(loss, expected_loss, atol=0, rtol=1e-4)
        assert_same_gradients(gradients(model, loss), expected_gradients)
