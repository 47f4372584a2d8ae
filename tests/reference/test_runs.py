"""A run logs its reference, saves its identity with checkpoints, and resumes with no other."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from tests import helpers
from tests.training import support
from tests.traps.support import fresh, row_logps
from trl_dpo_ext.reference import ReferenceMismatchError, fingerprint, run_reference
from trl_dpo_ext.training import ConfigError


def moved(folder: str) -> Any:
    """The model with its weights changed in memory."""
    model = fresh(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.view(-1)[0] += 0.5
    return model


def adapted(folder: str) -> Any:
    torch.manual_seed(5)
    return get_peft_model(fresh(folder), support.lora(init_lora_weights=False)).eval()


def opened(folder: str, adapter: Any) -> Any:
    return PeftModel.from_pretrained(fresh(folder), str(adapter), is_trainable=True)


def run(model: Any, folder: Any, **settings: Any) -> Any:
    return support.trainer(
        model,
        folder,
        helpers.pair_dataset(4),
        **{
            "loss_type": "dpo",
            "beta": 1.0,
            "max_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "ref_cache_dir": str(Path(folder) / "cache"),
            **settings,
        },
    )


def margin(policy: Any, reference: Any, rows: Any) -> float:
    """Mean over the rows of how much more the policy than the reference prefers the best, from plain forwards."""
    total = 0.0
    for row in rows:
        ratios = [pi - ref for pi, ref in zip(row_logps(policy, row), row_logps(reference, row), strict=True)]
        total += ratios[row["ranks"].index(0)] - ratios[row["ranks"].index(1)]
    return total / len(rows)


LORA = {"peft_config": support.lora()}
# kind; the model at first and again, given (base folder, folder of an adapter); the wrong one, given also the
# checkpoint; settings; the model that the reference must equal.
Case = tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Any], Callable[[str], Any]]
CASES: dict[str, Case] = {
    "full": ("second_model", lambda base, _: base, lambda base, _, checkpoint: checkpoint, {}, fresh),
    "full, in memory": ("second_model", lambda base, _: moved(base), lambda base, *_: base, {}, moved),
    "full, precomputed": (
        "second_model",
        lambda base, _: base,
        lambda base, _, checkpoint: checkpoint,
        {"precompute_ref_log_probs": True},
        fresh,
    ),
    "new adapter": ("adapters_off", lambda base, _: base, lambda base, *_: moved(base), LORA, fresh),
    "starting adapter": ("starting_adapter", opened, lambda base, _, checkpoint: opened(base, checkpoint), {}, adapted),
    "given": ("second_model", lambda base, _: base, lambda base, *_: base, {"ref_model": moved}, moved),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_against_its_own_reference_only(case, tiny_model_dir, tmp_path, caplog):
    kind, start, wrong, settings, expected = CASES[case]

    def given() -> dict[str, Any]:
        return {name: value(tiny_model_dir) if callable(value) else value for name, value in settings.items()}

    adapted(tiny_model_dir).save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.INFO, logger="trl_dpo_ext"):
        first = run(start(tiny_model_dir, tmp_path / "adapter"), tmp_path, **given())
    identity = first.reference_identity
    assert identity.kind == kind
    assert identity.fingerprint == fingerprint(expected(tiny_model_dir))
    assert f"Reference: {identity}." in caplog.text
    support.train(first)
    checkpoint = str(tmp_path / "checkpoint-1")
    saved = json.loads((tmp_path / "checkpoint-1" / "reference.json").read_text())
    assert saved == identity.as_dict()

    other = {**given(), **({"ref_model": fresh(tiny_model_dir)} if case == "given" else {})}
    if case == "given":
        other["model"] = tiny_model_dir
    model = other.pop("model", None) or wrong(tiny_model_dir, tmp_path / "adapter", checkpoint)
    trainer = run(model, tmp_path / "other", **other)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(ReferenceMismatchError) as failure:
        trainer.train(resume_from_checkpoint=checkpoint)
    assert str(identity) in str(failure.value)
    assert str(trainer.reference_identity) in str(failure.value)
    assert trainer.optimizer is None
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())

    again = run(start(tiny_model_dir, tmp_path / "adapter"), tmp_path / "again", **given())
    rest = support.train(again, resume_from_checkpoint=checkpoint)
    assert len(rest.gradients) == 1
    reward = margin(again.model.eval(), expected(tiny_model_dir), again.train_dataset)
    assert abs(reward) > 0.05
    assert again.evaluate(helpers.pair_dataset(4))["eval_rewards/margins"] == pytest.approx(reward, abs=1e-4)


def test_losses_without_a_reference_go_on_from_any_weights(tiny_model_dir, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="trl_dpo_ext"):
        support.train(run(tiny_model_dir, tmp_path, loss_type="simpo", beta=None))
    assert "Reference: none, since no loss reads one." in caplog.text
    checkpoint = str(tmp_path / "checkpoint-1")
    trainer = run(checkpoint, tmp_path / "again", loss_type="simpo", beta=None)
    assert trainer.reference_identity.kind == "none"
    assert len(support.train(trainer, resume_from_checkpoint=checkpoint).gradients) == 1

    # With a loss that reads one, nobody knows whether these are the weights it should be.
    with pytest.raises(ReferenceMismatchError, match="then: none, since no loss reads one"):
        run(checkpoint, tmp_path / "other").train(resume_from_checkpoint=checkpoint)


def test_the_newest_checkpoint_is_compared_too(tiny_model_dir, tmp_path):
    support.train(run(tiny_model_dir, tmp_path, max_steps=1))
    with pytest.raises(ReferenceMismatchError, match="checkpoint-1 was trained against another reference"):
        run(moved(tiny_model_dir), tmp_path).train(resume_from_checkpoint=True)


def test_processes_with_different_weights_are_refused(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run_reference, "gather_object", lambda mine: [*mine, "f" * 32])
    with pytest.raises(ReferenceMismatchError, match=r"Process 1 has other reference weights \(ffff"):
        run(tiny_model_dir, tmp_path)


def test_weights_that_cannot_be_read_are_said_and_not_compared(tiny_model_dir, tmp_path, monkeypatch, caplog):
    def unreadable(*_: Any) -> str:
        raise run_reference.FingerprintError("The weights are sharded.")

    monkeypatch.setattr(run_reference, "fingerprint", unreadable)
    support.train(run(tiny_model_dir, tmp_path, max_steps=1))
    assert "The reference has no fingerprint, so a resumed run can't check it. The weights are sharded." in caplog.text
    support.train(run(tiny_model_dir, tmp_path / "again"), resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "can't be compared" in caplog.text
    with pytest.raises(ConfigError, match="precompute_ref_log_probs"):
        run(tiny_model_dir, tmp_path / "cached", precompute_ref_log_probs=True)


# What is saved


@pytest.mark.parametrize("kind", ["starting adapter", "starting adapter beside another", "moved"])
def test_trap_14_the_copy_is_not_saved_with_the_model(kind, tiny_model_dir, tmp_path):
    """TRL writes its frozen copy into `ref/` of every output folder, from where it is pushed."""
    # To see it fail: in saves_no_copy, select all adapters.
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 1, **LORA} if kind == "moved" else {}
    model = tiny_model_dir if kind == "moved" else adapted(tiny_model_dir)
    if "another" in kind:
        model.add_adapter("another", support.lora())
    trainer = run(model, tmp_path, max_steps=1, **settings)
    assert "ref" in trainer.model.peft_config
    support.train(trainer)
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        adapters = {str(path.parent.relative_to(folder)) for path in folder.glob("**/adapter_config.json")}
        adapters = {name for name in adapters if not name.startswith("checkpoint")}
        assert adapters == ({".", "another"} if "another" in kind else {"."})
        for name, weight in load_file(folder / "adapter_model.safetensors").items():
            layer, _, end = name.rpartition(".")
            assert torch.equal(weight, trainer.model.state_dict()[f"{layer}.default.{end}"]), name
    trainer.model.save_pretrained(tmp_path / "by hand")  # what the user calls writes what it always writes
    assert (tmp_path / "by hand" / "ref").exists()


@pytest.mark.parametrize(
    ("adapters", "settings", "words"),
    [
        (["default", "ref"], {}, ["an adapter named 'ref'", "delete_adapter"]),
        (["mine"], {}, ["'mine'", "'default'"]),
        (["default"], {"sync_ref_model": True, "ref_model": fresh}, ["Remove ref_model"]),
        ([], {"sync_ref_model": True, "ref_model": fresh, **LORA}, ["Remove ref_model"]),
    ],
)
def test_adapters_that_leave_no_room_for_a_reference(adapters, settings, words, tiny_model_dir, tmp_path):
    model = fresh(tiny_model_dir)
    for number, name in enumerate(adapters):
        if number:
            model.add_adapter(name, support.lora())
        else:
            model = get_peft_model(model, support.lora(), adapter_name=name)
    settings = {name: value(tiny_model_dir) if callable(value) else value for name, value in settings.items()}
    with pytest.raises(ConfigError) as failure:
        run(model, tmp_path, **settings)
    for word in words:
        assert word in str(failure.value)
