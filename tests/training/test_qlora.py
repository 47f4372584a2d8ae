"""Real 4-bit steps on the CPU: NF4, double quantization, new and continued adapters, stored and online references.

Expected values come from a plain float32 model with the dequantized weights, without bitsandbytes' forward.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests import helpers
from tests.training import support
from tests.training.test_reference import best_log_prob, log_prob
from trl_dpo_ext.modeling.quantized import keep_4bit_weights

NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Save a model whose rows hold at least one quantization block of 64 weights."""
    return helpers.save_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def dequantized(model_dir):
    """Return the model in float32 with each linear layer's weights dequantized from NF4."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    stored = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, quantization_config=NF4)
    keep_4bit_weights(stored)
    changed = 0
    for name, module in stored.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = model.get_submodule(name).weight
            assert not torch.equal(weight, plain)
            with torch.no_grad():
                plain.copy_(weight)
            changed += 1
    assert changed == 14  # seven in each of two layers; the language-model head stays as it is
    return model.eval()


def adapter_dir(model: Any, folder: Any) -> str:
    """Save an adapter that isn't zero, as after an earlier training."""
    torch.manual_seed(5)
    # In bfloat16, like adapters that TRL trains on a quantized base, so that loading doesn't round them.
    config = support.lora(init_lora_weights=False, target_modules="all-linear")
    adapted = get_peft_model(model, config).to(torch.bfloat16)
    adapted.save_pretrained(folder)
    return str(folder)


def run(model: Any, folder: Any, **settings: Any) -> tuple[Any, support.Run]:
    trainer = support.trainer(
        model,
        folder,
        helpers.ranked_dataset(6, ties=True),
        eval_dataset=helpers.ranked_dataset(4, seed=1),
        loss_type="dpo",
        beta=1.0,
        max_steps=2,
        learning_rate=0.03,
        optim="adamw_torch",  # bitsandbytes' paged optimizer needs CUDA
        **settings,
        **support.LAYOUTS["shared_packed"],
    )
    return trainer, support.train(trainer)


def assert_trained_against(reference: Any, trainer: Any, result: support.Run, rounding: float = 1e-4) -> None:
    """Check that policy and reference start equal, the adapter changes, and rewards are relative to `reference`."""
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    for gradients in result.gradients:
        assert gradients
        assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
        assert all("lora_" in name for name in gradients)
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert set(trained) == set(result.gradients[0])
    rows = list(trainer.eval_dataset)
    reward = best_log_prob(trainer.model.eval(), rows) - best_log_prob(reference, rows)
    assert abs(reward) > 0.2
    assert trainer.evaluate()["eval_rewards/chosen"] == pytest.approx(reward, abs=rounding)


@pytest.mark.parametrize("stored", [False, True], ids=["online", "stored"])
def test_a_new_adapter(stored, model_dir, dequantized, tmp_path):
    """The reference is the quantized base, not the original one."""
    trainer, result = run(
        model_dir,
        tmp_path,
        quantization_config=NF4,
        peft_config=support.lora(target_modules="all-linear"),
        precompute_ref_log_probs=stored,
    )
    assert_trained_against(dequantized, trainer, result)
    unquantized = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    rows = list(trainer.eval_dataset)
    assert abs(best_log_prob(unquantized, rows) - best_log_prob(dequantized, rows)) > 0.01  # so a test can tell


@pytest.mark.parametrize("stored", [False, True], ids=["online", "stored"])
def test_a_continued_adapter(stored, model_dir, dequantized, tmp_path):
    """The reference is base and adapter as training found them."""
    folder = adapter_dir(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, quantization_config=NF4)
    trainer, result = run(
        PeftModel.from_pretrained(base, folder, is_trainable=True), tmp_path, precompute_ref_log_probs=stored
    )
    reference = PeftModel.from_pretrained(copy.deepcopy(dequantized), folder).eval()
    for name, weight in reference.named_parameters():
        if "lora_" in name:  # TRL trains the adapter of a 4-bit base in bfloat16, and the reference's copy is like it
            weight.data = weight.data.to(torch.bfloat16)
    for row in trainer.eval_dataset:
        best = [row["completion_ids"][row["ranks"].index(0)]]
        with_adapter, without = (log_prob(m, row["prompt_ids"], *best) for m in (reference, dequantized))
        assert abs(with_adapter - without) > 0.2  # so a test can tell
    assert_trained_against(reference, trainer, result, rounding=5e-3)  # in bfloat16 the rows' shape shows


def test_stored_and_online_train_the_same(model_dir, tmp_path):
    settings = {"quantization_config": NF4, "peft_config": support.lora(target_modules="all-linear")}
    _, online = run(model_dir, tmp_path / "online", **settings)
    _, stored = run(model_dir, tmp_path / "stored", precompute_ref_log_probs=True, **settings)
    assert stored.losses == pytest.approx(online.losses, rel=1e-4)


def test_the_base_stays_as_it_was(model_dir, dequantized, tmp_path):
    trainer, _ = run(model_dir, tmp_path, quantization_config=NF4, peft_config=support.lora())
    checked = 0
    for name, module in trainer.model.get_base_model().named_modules():
        module = getattr(module, "base_layer", module)
        if isinstance(module, bnb.nn.Linear4bit) and "base_layer" not in name:
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(weight, dequantized.get_submodule(name).weight)
            checked += 1
    assert checked == 14
