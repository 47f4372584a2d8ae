"""Models whose head TRL's fused one gets wrong: log-probs are those of the model's own logits."""

import logging

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests import helpers
from tests.training import support
from tests.traps.support import put_back, row_logps
from trl_dpo_ext._compat.trl import add_fused_lm_head
from trl_dpo_ext.modeling.compact_head import add_compact_head
from trl_dpo_ext.modeling.head_check import check_head
from trl_dpo_ext.modeling.layout import PromptGroup
from trl_dpo_ext.training import choose_layout

SIZE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model(kind):
    torch.manual_seed(0)
    if kind == "granite_moe":
        return GraniteMoeForCausalLM(
            GraniteMoeConfig(**SIZE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
        )
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2))
    more = {"modernbert-decoder": {"cls_token_id": 1, "sep_token_id": 2}}.get(
        kind, {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 64, "logits_soft_cap": 2.0}
    )
    config = AutoConfig.for_model(kind, **SIZE, **more)
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "decoder.bias" in name or name.startswith("head.") or "lm_head" in name:
                weight.normal_(0, 0.3)
    return made


@pytest.mark.parametrize("kind", ["modernbert-decoder", "recurrent_gemma", "granite_moe", "llama"])
def test_log_probs_are_those_of_the_models_own_logits(kind, tmp_path, caplog):
    policy = model(kind)
    plain = model(kind).eval()
    with caplog.at_level(logging.INFO, logger="trl_dpo_ext"):
        trainer = support.trainer(
            policy,
            tmp_path,
            helpers.ranked_dataset(4),
            processing_class=helpers.tiny_tokenizer(),
            loss_type="simpo",
            router_aux_loss_coef=0.01 if kind == "granite_moe" else None,
            max_steps=1,
        )
    assert ("model's own logits" in caplog.text) == (kind != "llama")
    batch = support.batch(trainer)
    trainer.model.eval()
    got = support.policy_outputs(trainer, batch).logps.sum(dim=2)
    for number, row in enumerate(trainer.train_dataset):
        expected = row_logps(plain, row)
        assert got[number, : len(expected)].tolist() == pytest.approx(expected, abs=1e-3)
    assert support.train(trainer).losses


@pytest.mark.parametrize("kind", ["modernbert-decoder", "recurrent_gemma", "granite_moe"])
def test_trap_18_a_head_that_nobody_compares_is_noticed(kind, monkeypatch, tmp_path, caplog):
    def nobody_compares(patch):
        patch.setattr(choose_layout, "check_head", lambda *args: None)

    with put_back(nobody_compares, monkeypatch):
        test_log_probs_are_those_of_the_models_own_logits(kind, tmp_path, caplog)


def test_the_own_head_gives_what_the_fused_head_gives(tmp_path, monkeypatch):
    """Every token-wise output and its gradient, on a model that both compute right."""
    results = []
    for problem in (None, "forced"):
        monkeypatch.setattr(choose_layout, "check_head", lambda *args, problem=problem: problem)
        trainer = support.trainer(
            model("llama"),
            tmp_path,
            helpers.ranked_dataset(4),
            processing_class=helpers.tiny_tokenizer(),
            use_weighting=True,
            max_steps=2,
            **support.LAYOUTS["shared_packed"],
        )
        results.append(support.train(trainer))
    fused, own = results
    assert own.losses == pytest.approx(fused.losses, rel=1e-5)
    for a, b in zip(own.logs, fused.logs, strict=True):
        for name in ("entropy", "logits/chosen", "mean_token_accuracy", "grad_norm"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), name
    support.assert_same_tensors(own.gradients[0], fused.gradients[0])


def test_a_head_inside_an_adapter_is_run_by_peft(tmp_path):
    """With tied weights, PEFT wraps the head as well, and TRL's head finds no bias there."""
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2, tie_word_embeddings=True))
    peft = support.lora(target_modules=["q_proj"], trainable_token_indices=[7, 9, 30])
    adapted = get_peft_model(tied, peft)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "trainable_tokens_delta" in name:
                weight.normal_(0, 0.5)
    trainer = support.trainer(
        adapted, tmp_path, helpers.ranked_dataset(4), processing_class=helpers.tiny_tokenizer(), max_steps=1
    )
    trainer.model.eval()
    got = support.policy_outputs(trainer, support.batch(trainer)).logps.sum(dim=2)
    for number, row in enumerate(trainer.train_dataset):
        expected = row_logps(trainer.model, row)
        assert got[number, : len(expected)].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("kind", "right"), [("llama", True), ("modernbert-decoder", False), ("wide llama", True)])
def test_in_bfloat16_rounding_is_no_error_and_a_wrong_head_is_one(kind, right):
    tried = model(kind.removeprefix("wide "))
    if kind.startswith("wide"):  # large logits round coarsely
        with torch.no_grad():
            tried.lm_head.weight.mul_(60)
    tried = tried.bfloat16()
    add_fused_lm_head(tried)
    add_compact_head(tried)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 320, (3, 16), generator=generator).tolist()
    assert (check_head(tried, tried.config, PromptGroup(ids[0], ids[1:])) is None) == right
