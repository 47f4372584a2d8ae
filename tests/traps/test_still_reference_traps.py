"""Traps of a reference that doesn't hold still: it trains along, it is noisy, or it is the policy itself."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, put_back, row_logps
from trl_dpo_ext.reference import ReferenceMismatchError, run_reference
from trl_dpo_ext.reference.beside_adapter import WeightsBesideAdapter
from trl_dpo_ext.training import ConfigError, engine
from trl_dpo_ext.training.preflight import run_checks


def seen_references(trainer: Any, checkpoint: str | None = None) -> list[tuple[list[int], torch.Tensor]]:
    """Train; return the rows and the reference's log-probs [B, K] of each micro-batch, as the losses saw them."""
    seen = []
    build = engine.ranked_responses

    def spy(policy: Any, reference: Any, batch: Any, **options: Any) -> Any:
        responses = build(policy, reference, batch, **options)
        seen.append((batch["rows"].tolist(), responses.ref_logps.clone()))
        return responses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ranked_responses", spy)
        trainer.train(resume_from_checkpoint=checkpoint)
    return seen


def farthest(trainer: Any, start: Any, checkpoint: str | None = None) -> float:
    """Train; return by how many nats a response's reference log-prob is off a plain forward of `start`, at most."""
    rows = {row["row"]: row for row in trainer.train_dataset}
    start = start.eval()
    return max(
        abs(float(values[b, k]) - expected)
        for numbers, values in seen_references(trainer, checkpoint)
        for b, number in enumerate(numbers)
        for k, expected in enumerate(row_logps(start, rows[number]))
    )


def small(kind: str, **changes: Any) -> Any:
    """A model with dropout, biases or a router, with random weights."""
    size = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=256, **changes))
    size |= {"intermediate_size": 64, "num_key_value_heads": 2}
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**size, **changes))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**size, **experts, **changes))


def everywhere(**changes: Any) -> LoraConfig:
    return support.lora(target_modules="all-linear", **changes)


def trained_adapter(model: Any, **changes: Any) -> Any:
    model = get_peft_model(model, everywhere(**changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return model


def run(model: Any, folder: Any, **settings: Any) -> Any:
    settings = {"max_steps": 4, "learning_rate": 0.03, **settings}
    return support.trainer(
        model, folder, helpers.ranked_dataset(8), processing_class=helpers.tiny_tokenizer(), **settings
    )


# What is trained beside the adapter


def biases_train_along(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WeightsBesideAdapter, "as_they_were", lambda self: contextlib.nullcontext())


@bugs(biases_train_along)
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trap_17_biases_that_lora_trains_do_not_move_the_reference(kind, bias, bug, monkeypatch, tmp_path):
    with put_back(bug, monkeypatch):
        model = small(kind)
        with torch.no_grad():  # biases of 0 would hide a reference that has none
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0, 0.1)
        start = copy.deepcopy(model)
        trainer = run(model, tmp_path, peft_config=everywhere(bias=bias))
        assert farthest(trainer, start) < 1e-4
        moved = [
            name for name, weight in trainer.model.named_parameters() if weight.requires_grad and name.endswith("bias")
        ]
        assert moved


def test_biases_of_a_stored_and_an_online_reference_give_one_run(tmp_path):
    runs = [
        support.train(
            run(small("qwen2"), tmp_path, peft_config=everywhere(bias="all"), precompute_ref_log_probs=stored)
        )
        for stored in (True, False)
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)


def test_biases_resume_against_the_same_reference(tmp_path):
    """The checkpoint's trained biases are loaded; the reference keeps those that the run began with."""
    settings = {"peft_config": everywhere(bias="all"), "save_strategy": "steps", "save_steps": 2}
    whole = support.train(run(small("qwen2"), tmp_path, **settings))
    again = run(small("qwen2"), tmp_path, **settings)
    assert farthest(again, small("qwen2"), str(tmp_path / "checkpoint-2")) < 1e-4
    assert whole.losses[2:] == pytest.approx(
        [entry["loss"] for entry in again.state.log_history if "loss" in entry][2:], rel=1e-5
    )


def unfreeze(model: Any, part: str) -> None:
    for name, weight in model.named_parameters():
        if part in name:
            weight.requires_grad_(True)


@pytest.mark.parametrize("part", ["embed_tokens", "norm"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_trap_17_weights_unfrozen_by_hand_are_refused(part, when, tmp_path):
    """They would move the reference, and the adapter's checkpoint doesn't hold them."""
    model = get_peft_model(small("qwen2"), everywhere())
    if when == "before":
        unfreeze(model, part)
        with pytest.raises(ReferenceMismatchError, match=rf"{part}.*modules_to_save"):
            run(model, tmp_path)
    else:
        trainer = run(model, tmp_path)
        unfreeze(trainer.model, part)
        with pytest.raises(ReferenceMismatchError, match=rf"{part}.*modules_to_save"):
            trainer.train()


def nobody_looks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_reference.Reference, "check_trainable", lambda *_: None)


def test_trap_17_weights_unfrozen_by_hand_would_move_the_reference(monkeypatch, tmp_path):
    with put_back(nobody_looks, monkeypatch):
        start = small("qwen2")
        model = get_peft_model(small("qwen2"), everywhere())
        unfreeze(model, "embed_tokens")
        assert farthest(run(model, tmp_path), start) < 1e-4


def test_biases_cannot_train_beside_a_reference_that_moves(tmp_path):
    with pytest.raises(NotImplementedError, match=r"bias='all'.*sync_ref_model"):
        run(small("qwen2"), tmp_path, peft_config=everywhere(bias="all"), sync_ref_model=True)


# What is random in training mode


def the_mode_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_reference, "evaluation_mode", lambda model: contextlib.nullcontext())


DROPOUT = {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}
NOISY: dict[str, tuple[Any, dict[str, Any]]] = {
    "dropout left on": (lambda: small("gpt2", **DROPOUT), {"peft_config": "new", "disable_dropout": False}),
    "dropout left on, full": (lambda: small("gpt2", **DROPOUT), {"disable_dropout": False}),
    "dropout of a trained adapter": (
        lambda: trained_adapter(small("qwen2"), lora_dropout=0.5),
        {"disable_dropout": False},
    ),
    "router jitter": (
        lambda: small("mixtral", router_jitter_noise=0.9),
        {"peft_config": support.lora(target_modules=["q_proj"])},
    ),
    "NEFTune": (lambda: small("qwen2"), {"peft_config": "new", "neftune_noise_alpha": 50.0}),
    "NEFTune, trained adapter": (lambda: trained_adapter(small("qwen2")), {"neftune_noise_alpha": 50.0}),
    "NEFTune, stored": (
        lambda: small("qwen2"),
        {"peft_config": "new", "neftune_noise_alpha": 50.0, "precompute_ref_log_probs": True},
    ),
}


@pytest.mark.parametrize("name", NOISY)
def test_trap_17_the_reference_has_no_noise(name, tmp_path):
    make, settings = NOISY[name]
    if settings.get("peft_config") == "new":
        settings = {**settings, "peft_config": everywhere()}
    start = make()
    assert farthest(run(make(), tmp_path, **settings), start) < 1e-4


@pytest.mark.parametrize("name", ["dropout left on", "router jitter", "NEFTune", "NEFTune, trained adapter"])
def test_trap_17_a_reference_in_training_mode_is_noticed(name, monkeypatch, tmp_path):
    with put_back(the_mode_stays, monkeypatch):
        test_trap_17_the_reference_has_no_noise(name, tmp_path)


def test_the_policy_keeps_its_mode(tmp_path):
    trainer = run(small("gpt2", **DROPOUT), tmp_path, peft_config=everywhere(), disable_dropout=False)
    trainer.model.train()
    with trainer.reference() as reference:
        assert not any(module.training for module in reference.modules())
    assert all(module.training for module in trainer.model.modules())


# A reference that is the policy


def nobody_compares(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_checks, "check_second_model", lambda *_: None)


def shared(policy: Any, second: Any) -> Any:
    for mine, theirs in zip(policy.parameters(), second.parameters(), strict=True):
        theirs.data = mine.data
    return second


def policy_and_reference(kind: str) -> tuple[Any, Any]:
    policy = small("qwen2")
    if kind == "itself":
        return policy, policy
    if kind == "its tensors":
        return policy, shared(policy, small("qwen2"))
    adapted = get_peft_model(policy, everywhere())
    return adapted, policy if kind == "its base" else adapted.get_base_model()


@pytest.mark.parametrize("kind", ["itself", "its tensors", "its base", "its base by name"])
def test_trap_17_a_reference_that_is_the_policy_is_refused(kind, tmp_path):
    """The loss would be ln 2 at every step."""
    policy, second = policy_and_reference(kind)
    with pytest.raises(ConfigError, match="ref_model"):
        run(policy, tmp_path, ref_model=second)


@pytest.mark.parametrize("kind", ["itself", "its tensors"])
def test_trap_17_a_reference_that_is_the_policy_would_train_along(kind, monkeypatch, tmp_path):
    with put_back(nobody_compares, monkeypatch):
        policy, second = policy_and_reference(kind)
        assert farthest(run(policy, tmp_path, ref_model=second), small("qwen2")) < 1e-4


def test_a_reference_given_as_a_path_is_loaded(tiny_model_dir, tmp_path):
    folder = helpers.save_tiny_model(tmp_path / "other", seed=3)
    trainer = run(tiny_model_dir, tmp_path / "run", ref_model=folder)
    assert farthest(trainer, helpers.tiny_model(helpers.tiny_tokenizer(), seed=3)) < 1e-4


def test_a_path_that_is_not_there_is_an_error_before_anything_is_loaded(tiny_model_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(tiny_model_dir, tmp_path, ref_model=str(tmp_path / "nowhere"))


# A model without anything to hide


@pytest.mark.parametrize("tied", [True, False])
def test_trainable_token_indices(tied, tmp_path):
    """Rows of the embeddings train in the adapter; with tied weights the head reads them too."""
    model = small("qwen2", tie_word_embeddings=tied)
    start = copy.deepcopy(model)
    trainer = run(model, tmp_path, peft_config=support.lora(target_modules=["q_proj"], trainable_token_indices=[7, 9]))
    assert farthest(trainer, start) < 1e-4
