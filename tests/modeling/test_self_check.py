"""The self-check accepts models that follow the mask, rejects others, and leaves the model unchanged."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

from tests.modeling.tiny import FAMILIES, by_layout, headed, one_by_one, ragged_groups, shape_of, tiny
from trl_dpo_ext.modeling import row_plan as prefix_sharing
from trl_dpo_ext.modeling.compact_head import add_compact_head
from trl_dpo_ext.modeling.layout import PromptGroup, padded_layout, shared_layout
from trl_dpo_ext.modeling.row_plan import RowLayout, plan_rows
from trl_dpo_ext.modeling.self_check import check_rows

GROUPS = ragged_groups()
GROUP = GROUPS[2]
SHAPE = shape_of(GROUPS)


class Convolution(nn.Module):
    """An artificial layer that adds half of the previous column to each position."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + 0.5 * nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]


def convolved(**changes: Any) -> Any:
    model = tiny("llama", **changes)
    model.model.layers[1].mlp = nn.Sequential(model.model.layers[1].mlp, Convolution())
    return model


REFUSED = {
    "convolution": convolved,
    "falcon_h1": lambda: headed(
        hf.FalconH1Config(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_chunk_size=8,
        )
    ),
    "bloom": lambda: headed(hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)),
    "mpt": lambda: headed(hf.MptConfig(vocab_size=61, d_model=32, n_layers=2, n_heads=4)),
    "rwkv": lambda: headed(hf.RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, intermediate_size=48)),
}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_models_are_accepted(family: str, share: bool) -> None:
    model = tiny(family)
    check = check_rows(model, model.config, GROUP, share=share)
    assert check.ok
    assert max(check.error, check.crosstalk) < 1e-5 < 1e-2 < check.leak


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name: str, share: bool) -> None:
    model = REFUSED[name]()
    assert not check_rows(model, model.config, GROUP, share=share).ok


def test_biases_by_column_are_found_by_their_numbers() -> None:
    """MPT uses ALiBi, here without the config saying so."""
    model = REFUSED["mpt"]()
    model.config.attn_config.alibi = False
    check = check_rows(model, model.config, GROUP)
    assert not check.ok
    assert check.crosstalk < 1e-6 < check.error


@pytest.mark.parametrize("name", ["convolution", "rwkv"])
def test_what_is_refused_would_have_been_wrong(name: str) -> None:
    """Nothing raises an error. Only the log-probs of shared rows are wrong; plain rows are right."""
    model = REFUSED[name]().eval()
    expected = one_by_one(model, GROUPS)
    torch.testing.assert_close(by_layout(model, padded_layout(GROUPS, SHAPE[1]), SHAPE), expected, atol=1e-5, rtol=0)
    assert (by_layout(model, shared_layout(GROUPS, SHAPE[1]), SHAPE) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "group",
    [PromptGroup([5, 6, 7], [[8, 9, 10]]), PromptGroup([5], [[8, 9, 10], [8, 4]]), PromptGroup([5, 6], [[8], [9]])],
    ids=["one response", "prompt of one token", "responses of one token"],
)
def test_any_group_tells_right_from_wrong(group: PromptGroup) -> None:
    right, wrong = tiny("llama"), convolved()
    assert check_rows(right, right.config, group).ok
    assert not check_rows(wrong, wrong.config, group).ok


def rounded(model: Any) -> Any:
    """Make log-probs depend on the batch's shape, like rounding, whose size varies with the torch version."""
    difference = 0.1 * check_rows(model, model.config, GROUP).leak

    def add(module: nn.Module, args: Any, inputs: dict[str, Tensor], outputs: Any) -> None:
        if inputs["input_ids"].shape[0] == 1:  # the plain path has one row per response
            outputs.log_probs = outputs.log_probs + difference

    model.register_forward_hook(add, with_kwargs=True)
    return model


def test_bfloat16_may_round_and_a_convolution_is_still_refused() -> None:
    exact, right, wrong = rounded(tiny("llama")), rounded(tiny("llama").bfloat16()), convolved().bfloat16()
    check = check_rows(right, right.config, GROUP)
    assert check.ok
    assert check.error == pytest.approx(0.1 * check.leak, rel=0.5)
    assert not check_rows(exact, exact.config, GROUP).ok
    assert not check_rows(wrong, wrong.config, GROUP).ok


def test_nf4_is_accepted(tmp_path) -> None:
    tiny("llama", hidden_size=64, head_dim=16, intermediate_size=64).save_pretrained(tmp_path)
    quantization = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    assert any(p.dtype == torch.uint8 for p in model.parameters())
    add_fused_lm_head(model)
    add_compact_head(model)
    assert check_rows(model, model.config, GROUP).ok


def test_a_model_that_lowers_the_precision_itself_is_accepted_when_told() -> None:
    """Like accelerate's mixed precision: the weights are float32, but the rounding isn't."""
    model = rounded(tiny("llama"))
    assert not check_rows(model, model.config, GROUP).ok
    assert check_rows(model, model.config, GROUP, full_precision=False).ok


def test_the_model_comes_back_as_it_was() -> None:
    model = tiny("llama")
    model.train()
    model.model.layers[0].eval()  # as if the user had frozen a layer's dropout
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    seen: list[bool] = []
    model.model.register_forward_hook(lambda module, args, out: seen.append(module.training or torch.is_grad_enabled()))
    with torch.autocast("cpu", torch.bfloat16):
        check = check_rows(model, model.config, GROUP)
        assert torch.is_autocast_enabled("cpu")
    assert check.error < 1e-5  # without autocast inside
    assert seen == [False] * 4  # four forwards, in evaluation mode, without gradients
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())


def test_dropout_does_not_disturb_it() -> None:
    model = tiny("llama", attention_dropout=0.5)
    assert check_rows(model.train(), model.config, GROUP).ok


# How a run uses the result


def test_a_good_model_shares_and_packs() -> None:
    model = tiny("llama")
    plan = plan_rows(model, model.config, GROUPS)
    assert (plan.share, plan.pack, plan.if_cheaper) == (True, True, True)
    assert "once" in plan.note


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_model_falls_back_or_raises(name: str) -> None:
    model = REFUSED[name]()
    plan = plan_rows(model, model.config, GROUPS)
    assert (plan.share, plan.pack) == (False, False)
    assert "not shared" in plan.note
    batch = plan(GROUPS, SHAPE[1])
    assert all(torch.equal(batch[key], value) for key, value in padded_layout(GROUPS, SHAPE[1]).items())
    with pytest.raises(ValueError, match="can't share prompts"):
        plan_rows(model, model.config, GROUPS, prefix_sharing=True)


def test_the_longest_group_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[PromptGroup] = []
    monkeypatch.setattr(prefix_sharing, "check_rows", lambda m, c, group, **k: tried.append(group) or check)
    check = SimpleNamespace(failure=None, error=0.0)
    plan_rows(
        nn.Identity(),
        tiny("llama").config,
        [PromptGroup([1], [[2]]), PromptGroup([1] * 9, [[2] * 9]), PromptGroup([1] * 30, [[2]])],
    )
    assert tried == [PromptGroup([1] * 9, [[2] * 9])]


def test_neither_sharing_nor_packing_runs_nothing() -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran")

    model = tiny("llama")
    model.forward = never
    assert plan_rows(model, model.config, GROUPS, prefix_sharing=False, packing=False) == RowLayout()


def test_flash_attention_packs_in_one_row_or_says_why_not() -> None:
    model = tiny("llama")
    config = tiny("llama").config
    config._attn_implementation = "flash_attention_2"
    plan = plan_rows(model, config, GROUPS)
    assert (plan.share, plan.pack, plan.one_row) == (False, True, True)
    assert "flash_attention_2" in plan.note
    assert plan(GROUPS, SHAPE[1])["input_ids"].shape[0] == 1
    assert not plan_rows(model, config, GROUPS, packing=False).pack
    with pytest.raises(ValueError, match="flex_attention"):
        plan_rows(model, config, GROUPS, prefix_sharing=True)


def test_without_packing_each_group_has_its_row() -> None:
    model = tiny("llama")
    plan = plan_rows(model, model.config, GROUPS, prefix_sharing=True, packing=False)
    assert plan(GROUPS, SHAPE[1])["input_ids"].shape[0] == len(GROUPS)
    assert plan_rows(model, model.config, GROUPS, prefix_sharing=True)(GROUPS, SHAPE[1])["input_ids"].shape[0] < 6


def test_each_batch_takes_the_cheaper_rows() -> None:
    """A row of K long responses costs K times the attention of K rows. A long prompt outweighs that."""
    model = tiny("llama")
    plan = plan_rows(model, model.config, GROUPS)
    long_prompt = [PromptGroup([1] * 300, [[2] * 20] * 4)]
    long_responses = [PromptGroup([1] * 2, [[2] * 300] * 4)]
    assert plan(long_prompt, 4)["input_ids"].shape == (1, 299 + 4 * 20)
    assert plan(long_responses, 4)["input_ids"].shape == (4, 301)
    insisting = replace(plan, if_cheaper=False)
    assert insisting(long_responses, 4)["input_ids"].shape == (1, 1201)
    # Masked blocks cost nothing.
    assert replace(plan, pair_cost=0.0)(long_responses, 4)["input_ids"].shape == (1, 1201)
