"""Counts of weights under ZeRO-3, which leaves each weight empty between forwards. The partition is faked."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training import support
from trl_dpo_ext.hub import training_record
from trl_dpo_ext.training.errors import ConfigError, DiskSpaceError
from trl_dpo_ext.training.preflight import run_checks
from trl_dpo_ext.training.preflight.adapter_checks import check_second_model


def partitioned() -> nn.Linear:
    """A layer of 3 x 5 trainable and 5 frozen values, as ZeRO-3 holds it between forwards."""
    model = nn.Linear(3, 5)
    model.bias.requires_grad_(False)
    for weight in model.parameters():
        weight.ds_numel = weight.numel()  # type: ignore[attr-defined]
        weight.data = torch.empty(0)
    return model


def test_a_reference_that_shares_partitioned_weights_is_refused():
    policy, reference, other = partitioned(), partitioned(), partitioned()
    for model in (policy, reference, other):
        for weight in model.parameters():
            weight.ds_id, weight.ds_tensor = 0, torch.zeros(3)
    check_second_model(policy, other)
    reference.weight.ds_tensor = policy.weight.ds_tensor
    with pytest.raises(ConfigError, match=r"shares trainable weights with the model \(weight"):
        check_second_model(policy, reference)


@pytest.mark.parametrize("free", [179, 180])
def test_disk_has_room_for_partitioned_weights(free, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    args = support.config(tmp_path, loss_type="dpo", save_strategy="steps")
    if free == 180:  # 15 weights and two moments, 4 bytes each
        run_checks.check_disk(partitioned(), args)
        return
    with pytest.raises(DiskSpaceError):
        run_checks.check_disk(partitioned(), args)


def test_the_record_counts_partitioned_weights():
    model: Any = partitioned()
    model.config = SimpleNamespace(dtype=torch.float32)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        model=model,
        objective=SimpleNamespace(terms=[]),
        train_dataset=[],
        eval_dataset=None,
        data_findings=SimpleNamespace(at_least=lambda _: []),
    )
    assert training_record(trainer)["parameters"] == {"trainable": 15, "all": 20}
