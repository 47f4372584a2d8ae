"""TR-DPO (arXiv 2404.09656): the reference moves as far as computed here by hand, in float64."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from tests import helpers
from tests.training import support
from tests.traps.support import fresh, row_logps
from trl_dpo_ext.reference import ReferenceMismatchError, fingerprint
from trl_dpo_ext.training import ConfigError, DiskSpaceError
from trl_dpo_ext.training.preflight import run_checks as checks
from trl_dpo_ext.training.safety.checkpoint_files import write_marker

MOVES = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}
KINDS = ["full", "new adapter", "starting adapter", "adapter with more"]


class Weights(TrainerCallback):
    """Policy and reference after each step, by name, the policy's as the optimizer leaves it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.policy = [self.of("default")]
        self.reference = [self.of("ref")]

    def of(self, adapter: str) -> dict[str, Tensor]:
        trainer = self.trainer
        if trainer.ref_model is not None:
            model = trainer.model if adapter == "default" else trainer.ref_model
            return {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
        return {
            name.replace(f".{adapter}", ""): weight.detach().double().clone()
            for name, weight in trainer.model.named_parameters()
            if f".{adapter}" in name
        }

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.policy.append(self.of("default"))
        self.reference.append(self.of("ref"))


def start(kind: str, folder: str) -> tuple[Any, dict[str, Any]]:
    if kind in ("full", "new adapter"):
        return folder, {"peft_config": support.lora()} if kind == "new adapter" else {}
    more = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"], "use_dora": True}
    torch.manual_seed(5)
    return get_peft_model(fresh(folder), support.lora(init_lora_weights=False, **(more if "more" in kind else {}))), {}


def run(kind: str, model_dir: str, folder: Any, **settings: Any) -> tuple[Any, Weights]:
    model, arguments = start(kind, model_dir)
    trainer = support.trainer(
        model,
        folder,
        helpers.pair_dataset(8),
        **{
            "loss_type": "dpo",
            "beta": 1.0,
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 1,
            **MOVES,
            **arguments,
            **settings,
        },
    )
    weights = Weights(trainer)
    trainer.add_callback(weights)
    return trainer, weights


@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(kind, tiny_model_dir, tmp_path):
    trainer, weights = run(kind, tiny_model_dir, tmp_path)
    identity = trainer.reference_identity
    if kind == "new adapter":  # it begins as the base model, and says so
        assert identity.fingerprint == fingerprint(fresh(tiny_model_dir))
    losses = support.train(trainer).losses
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert trainer.reference_identity == identity

    expected = weights.policy[0]
    count = 0
    for step in range(5):
        if step and step % 2 == 0:
            expected = {name: 0.6 * weights.policy[step][name] + 0.4 * before for name, before in expected.items()}
            count += 1
        assert weights.reference[step].keys() == expected.keys()
        for name, weight in weights.reference[step].items():
            assert torch.allclose(weight, expected[name], rtol=1e-6, atol=1e-6), (step, name)
    assert count == 2
    moved = max((weights.reference[-1][name] - weights.policy[0][name]).abs().max() for name in expected)
    assert moved > 1e-3

    # And these weights are what the rewards are measured against.
    if kind == "full":
        reference = fresh(tiny_model_dir)
        reference.load_state_dict({name: weight.float() for name, weight in expected.items()})
    else:
        reference, arguments = start(kind, tiny_model_dir)
        if arguments:
            reference = get_peft_model(fresh(tiny_model_dir), support.lora())
        for name, weight in reference.named_parameters():
            if ".default" in name:
                weight.data = expected[name.replace(".default", "")].float()
    total = 0.0
    trainer.model.eval()
    reference.eval()
    for row in trainer.train_dataset:
        total += row_logps(trainer.model, row)[0] - row_logps(reference, row)[0]
    got = trainer.evaluate(helpers.pair_dataset(8))["eval_rewards/chosen"]
    assert all(row["ranks"][0] == 0 for row in trainer.train_dataset)
    assert abs(total) > 0.1
    assert got == pytest.approx(total / 8, abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "starting adapter"])
def test_alpha_1_is_the_policy_exactly(kind, tiny_model_dir, tmp_path):
    trainer, weights = run(kind, tiny_model_dir, tmp_path, max_steps=2, ref_model_mixup_alpha=1.0)
    support.train(trainer)
    for name, weight in weights.policy[2].items():
        assert torch.equal(weights.reference[2][name], weight), name
        assert torch.equal(weights.reference[1][name], weights.policy[0][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "new adapter"])
def test_a_resumed_run_goes_on_from_the_moved_reference(kind, tiny_model_dir, tmp_path):
    """TRL starts again from the first reference, and nothing shows it."""
    trainer, weights = run(kind, tiny_model_dir, tmp_path)
    whole = support.train(trainer)
    again, _ = run(kind, tiny_model_dir, tmp_path / "again")
    checkpoint = tmp_path / "checkpoint-3"
    rest = support.train(again, resume_from_checkpoint=str(checkpoint))
    assert rest.losses == whole.losses
    assert [log for log in rest.logs if log["step"] > 3] == [log for log in whole.logs if log["step"] > 3]
    end = Weights(again)
    for name, weight in weights.reference[-1].items():
        assert torch.equal(end.reference[0][name], weight), name
        assert torch.equal(end.policy[0][name], weights.policy[-1][name]), name
    assert trainer.evaluate(helpers.pair_dataset(2)).keys() == again.evaluate(helpers.pair_dataset(2)).keys()


def test_a_checkpoint_whose_reference_moved_in_another_way(tiny_model_dir, tmp_path):
    support.train(run("new adapter", tiny_model_dir, tmp_path / "moves", max_steps=1)[0])
    support.train(run("new adapter", tiny_model_dir, tmp_path / "stands", max_steps=1, sync_ref_model=False)[0])
    assert not (tmp_path / "stands" / "checkpoint-1" / "reference.safetensors").exists()
    for folder, moves, words in (("moves", False, "moved with the policy"), ("stands", True, "stood still")):
        trainer, _ = run("new adapter", tiny_model_dir, tmp_path / "other", sync_ref_model=moves)
        with pytest.raises(ReferenceMismatchError, match=f"{words}.*sync_ref_model={moves}"):
            trainer.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-1"))


@pytest.mark.parametrize("damage", ["garbage", "another adapter"])
def test_a_damaged_reference_is_named(damage, tiny_model_dir, tmp_path):
    support.train(run("new adapter", tiny_model_dir, tmp_path, max_steps=1)[0])
    path: Path = tmp_path / "checkpoint-1" / "reference.safetensors"
    size = path.stat().st_size
    if damage == "garbage":
        path.write_bytes(b"x" * size)
        words = "is damaged or truncated"
    else:
        tensors = load_file(path)
        renamed = {name.replace("q_proj", "k_proj"): tensor for name, tensor in tensors.items()}
        save_file(renamed, path)
        words = "holds another adapter"
        assert path.stat().st_size == size
    write_marker(path.parent, True, None)  # with checksums of the damaged file
    trainer, _ = run("new adapter", tiny_model_dir, tmp_path / "again")
    with pytest.raises(ReferenceMismatchError, match=rf"reference\.safetensors {words}"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precompute_ref_log_probs": True}, "stored values are wrong"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps=0 is out of range"),
        ({"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha=0.0 is out of range"),
        ({"ref_model_mixup_alpha": 1.5}, "ref_model_mixup_alpha=1.5 is out of range"),
        ({"loss_type": "simpo", "beta": None}, "sync_ref_model is set, but none of"),
    ],
)
def test_settings_that_move_nothing_or_too_much(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        support.config(tmp_path, **{"loss_type": "dpo", **MOVES, **settings})


def test_room_for_the_moved_reference_is_checked_too(tiny_model_dir, tmp_path, monkeypatch):
    model = fresh(tiny_model_dir)
    size = sum(4 * weight.numel() for weight in model.parameters())
    usage = type("Usage", (), {"free": 3 * size})  # weights and two moments
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    for moves in (False, True):
        args = support.config(tmp_path, loss_type="dpo", save_strategy="steps", **{**MOVES, "sync_ref_model": moves})
        with pytest.raises(DiskSpaceError) if moves else contextlib.nullcontext():
            checks.check_disk(model, args)
