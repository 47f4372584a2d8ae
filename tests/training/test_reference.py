"""The reference is the weights that training started from. It doesn't exist if no loss reads it.

A loss of ln 2 at the first step proves only that policy and reference are the same model, so the rewards after training
are compared with log-probs of the intended weights, computed here with plain forwards of single sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl.trainer import dpo_trainer

from tests import helpers
from tests.training import support
from tests.traps.support import row_logps
from trl_dpo_ext._compat import trl as compat_trl
from trl_dpo_ext.reference import run_reference
from trl_dpo_ext.types import MissingReferenceError

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def loaded(model_dir: str, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, **kwargs).eval()


def moved(model_dir: str) -> Any:
    """Return the model with its weights changed in memory; its folder still has the original ones."""
    model = loaded(model_dir)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model


def with_adapter(model_dir: str, *, quantized: bool = False, **changes: Any) -> Any:
    """Return the model with a non-zero adapter, as after an earlier training."""
    base = loaded(model_dir, **({"quantization_config": NF4} if quantized else {}))
    torch.manual_seed(5)
    return get_peft_model(base, support.lora(init_lora_weights=False, **changes)).eval()


def on_embeddings(model_dir: str) -> Any:
    """TRL's frozen copy of such an adapter isn't one: it leaves out what has no `.weight` behind the adapter's name."""
    return with_adapter(model_dir, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"])


def quantized_adapter(model_dir: str) -> Any:
    """TRL rounds the trained adapter of a 4-bit base to bfloat16, and not its frozen copy."""
    model = with_adapter(model_dir, quantized=True)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.bfloat16()
    return model.train()  # evaluation on a CPU may use bfloat16 kernels


def reopened_adapter(model_dir: str, folder: Any) -> Any:
    """Return the same adapter, saved and loaded."""
    with_adapter(model_dir).save_pretrained(folder)
    return PeftModel.from_pretrained(loaded(model_dir), str(folder), is_trainable=True)


# The model to train, further arguments, and the model whose log-probs the reference must have.
Case = tuple[Callable[[str, Any], Any], dict[str, Any], Callable[[str], Any]]
CASES: dict[str, Case] = {
    "full": (lambda path, _: path, {}, loaded),
    "full, weights changed in memory": (lambda path, _: moved(path), {}, moved),
    "full, precomputed": (lambda path, _: moved(path), {"precompute_ref_log_probs": True}, moved),
    "full, given reference": (lambda path, _: path, {"ref_model": moved}, moved),
    "new adapter": (lambda path, _: path, {"peft_config": support.lora()}, loaded),
    "new adapter, weights changed in memory": (lambda path, _: moved(path), {"peft_config": support.lora()}, moved),
    "pretrained adapter": (lambda path, _: with_adapter(path), {}, with_adapter),
    "pretrained adapter, reopened": (reopened_adapter, {}, with_adapter),
    "pretrained adapter, precomputed": (
        lambda path, _: with_adapter(path),
        {"precompute_ref_log_probs": True},
        with_adapter,
    ),
    "pretrained adapter on embeddings": (lambda path, _: on_embeddings(path), {}, on_embeddings),
    "pretrained adapter on a 4-bit base": (lambda path, _: with_adapter(path, quantized=True), {}, quantized_adapter),
    # PiSSA moves part of the base weights into the adapter, so the base alone is no usable model.
    "new adapter that takes from the base": (
        lambda path, _: path,
        {"peft_config": support.lora(init_lora_weights="pissa")},
        loaded,
    ),
    "new adapter on a 4-bit base": (
        lambda path, _: path,
        {"peft_config": support.lora(), "quantization_config": NF4},
        lambda path: loaded(path, quantization_config=NF4).train(),  # evaluation on a CPU may use bfloat16 kernels
    ),
}


@torch.no_grad()
def log_prob(model: Any, prompt_ids: list[int], completion_ids: list[int]) -> float:
    ids = torch.tensor([prompt_ids + completion_ids])
    scores = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    return scores[range(len(completion_ids)), completion_ids].double().sum().item()


def best_log_prob(model: Any, rows: Any) -> float:
    """Return the mean over prompts of the best response's log-prob."""
    values = [log_prob(model, row["prompt_ids"], row["completion_ids"][row["ranks"].index(0)]) for row in rows]
    return sum(values) / len(values)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_where_training_started(case, tiny_model_dir, tmp_path):
    make, arguments, reference = CASES[case]
    if "4-bit" in case:  # a block of 64 weights must fit a row
        tiny_model_dir = helpers.save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    arguments = {name: value(tiny_model_dir) if callable(value) else value for name, value in arguments.items()}
    trainer = support.trainer(
        make(tiny_model_dir, tmp_path / "adapter"),
        tmp_path,
        helpers.ranked_dataset(4, ties=True),
        eval_dataset=helpers.ranked_dataset(4, seed=1),
        loss_type="dpo",
        beta=1.0,
        max_steps=2,
        learning_rate=0.1 if "peft_config" in arguments else 0.03,
        **arguments,
        **support.LAYOUTS["shared_packed"],
    )
    same_at_start = "ref_model" not in arguments
    losses = support.train(trainer).losses
    assert (losses[0] == pytest.approx(math.log(2), rel=1e-5)) == same_at_start

    expected_reference = reference(tiny_model_dir)
    rows = list(trainer.eval_dataset)
    reward = best_log_prob(trainer.model.eval(), rows) - best_log_prob(expected_reference, rows)
    assert abs(reward) > 0.2
    print(reward, trainer.evaluate()["eval_rewards/chosen"] - reward)
    assert trainer.evaluate()["eval_rewards/chosen"] == pytest.approx(reward, abs=1e-4)


def test_a_4bit_base_gives_gradients_after_an_evaluation(tmp_path):
    """On some CPUs bitsandbytes repacks the weights at the first evaluation, and repacked weights pass no gradient."""
    model = helpers.save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    trainer = support.trainer(
        model,
        tmp_path,
        helpers.ranked_dataset(6),
        eval_dataset=helpers.ranked_dataset(2),
        eval_strategy="steps",
        eval_steps=1,
        peft_config=support.lora(),
        quantization_config=NF4,
        **support.LAYOUTS["shared_packed"],
    )
    for gradients in support.train(trainer).gradients:
        assert len(gradients) == 8
        assert max(gradient.abs().max() for gradient in gradients.values()) > 0.01


@pytest.mark.parametrize("peft", [False, True], ids=["full", "adapter"])
def test_precomputed_values_are_those_of_the_reference(peft, tiny_model_dir, tmp_path):
    def run(**settings: Any) -> tuple[Any, support.Run]:
        trainer = support.trainer(
            tiny_model_dir,
            tmp_path,
            helpers.ranked_dataset(6, ties=True),
            eval_dataset=helpers.ranked_dataset(5, seed=1),
            peft_config=support.lora() if peft else None,
            loss_type=["plackett_luce", "sppo_hard"],
            loss_weights=[1.0, 1e-5],
            optim="sgd",
            **settings,
        )
        result = support.train(trainer)
        result.logs.append(trainer.evaluate())
        return trainer, result

    _, online = run()
    trainer, cached = run(precompute_ref_log_probs=True, precompute_ref_batch_size=4)
    assert trainer.ref_model is None
    assert "ref_token_logps" in support.batch(trainer)
    support.assert_same_run(cached, online)

    # A dataset passed later gets stored values and, with adapters, new ones. Without adapters the reference is gone.
    later = trainer.evaluate(helpers.ranked_dataset(5, seed=1))
    assert later["eval_loss"] == pytest.approx(cached.logs[-1]["eval_loss"], rel=1e-5)
    if peft:
        trainer.evaluate(helpers.ranked_dataset(5, seed=2))
    else:
        with pytest.raises(MissingReferenceError, match="precompute_ref_log_probs"):
            trainer.evaluate(helpers.ranked_dataset(5, seed=2))


# No reference


@pytest.mark.parametrize(
    ("loss", "beta", "mean"),
    [("simpo", 2.0, True), ("reference_free_dpo", 0.1, False), (["orpo", "sft"], 0.1, True), ("cpo", 0.1, False)],
)
def test_rewards_without_a_reference(loss, beta, mean, tiny_model_dir, tmp_path):
    """Each loss's own implicit reward: beta times the log-prob, per token where the loss is length-normalized."""
    trainer = support.trainer(
        tiny_model_dir,
        tmp_path,
        helpers.ranked_dataset(4),
        eval_dataset=helpers.ranked_dataset(3),
        loss_type=loss,
        max_steps=1,
    )
    for log in (support.train(trainer).logs[0], {k.removeprefix("eval_"): v for k, v in trainer.evaluate().items()}):
        names = ["chosen", "rejected", "margins", "accuracies", "top1_accuracies", "kendall_tau"]
        assert {f"rewards/{name}" for name in names} <= log.keys()
    model = trainer.model.eval()
    best = []
    for row in trainer.eval_dataset:
        logps = row_logps(model, row)
        k = row["ranks"].index(0)
        best.append(beta * logps[k] / (len(row["completion_ids"][k]) if mean else 1))
    assert trainer.evaluate()["eval_rewards/chosen"] == pytest.approx(sum(best) / len(best), rel=1e-4)


@pytest.mark.parametrize("kind", ["full", "in memory", "new adapter", "pretrained adapter"])
def test_no_reference_is_loaded_or_run(kind, tiny_model_dir, tmp_path, monkeypatch):
    made = []
    create, copy_of = dpo_trainer.create_model_from_path, run_reference.frozen_copy
    for module in (dpo_trainer, compat_trl):
        monkeypatch.setattr(module, "create_model_from_path", lambda *a, **k: made.append("loaded") or create(*a, **k))
    monkeypatch.setattr(run_reference, "frozen_copy", lambda model: made.append("copied") or copy_of(model))
    model = {"in memory": loaded, "pretrained adapter": with_adapter}.get(kind, lambda path: path)(tiny_model_dir)

    def steps(loss: str) -> tuple[Any, int]:
        made.clear()
        trainer = support.trainer(
            model,
            tmp_path,
            helpers.ranked_dataset(4),
            peft_config=support.lora() if kind == "new adapter" else None,
            loss_type=loss,
            max_steps=2,
        )
        forwards = []
        for one in (trainer.model, trainer.ref_model):
            if one is not None:
                backbone = trainer.accelerator.unwrap_model(one).get_input_embeddings()
                backbone.register_forward_hook(lambda *_: forwards.append(1))
        support.train(trainer)
        return trainer, len(forwards)

    trainer, forwards = steps("simpo")
    assert trainer.ref_model is None
    assert made == ([] if kind in ("in memory", "pretrained adapter") else ["loaded"])
    assert "ref" not in getattr(trainer.model, "peft_config", {})
    assert forwards == 2

    # The count would reveal a reference.
    if kind != "pretrained adapter":  # this model has been trained meanwhile
        _, forwards = steps("dpo")
        assert forwards == 4
        assert len(made) == {"full": 2, "in memory": 1, "new adapter": 1}[kind]


def test_full_fine_tuning_does_not_move_the_reference(tiny_model_dir, tmp_path):
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.ranked_dataset(4), loss_type="dpo")
    before = {name: weight.clone() for name, weight in trainer.ref_model.named_parameters()}
    run = support.train(trainer)
    for name, weight in trainer.ref_model.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert not torch.equal(run.weights[name], before[name]), name
        assert weight.grad is None
