"""The compact head gives the same outputs as TRL's head, with less work."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from tests.modeling.tiny import FAMILIES, OUTPUTS, ragged_groups, shape_of
from trl_dpo_ext.modeling.compact_head import add_compact_head
from trl_dpo_ext.modeling.layout import padded_layout, shared_layout
from trl_dpo_ext.modeling.masks import model_inputs

GROUPS = ragged_groups()
WIDTH = shape_of(GROUPS)[1]


def pair(family: str = "llama", **changes: Any) -> tuple[Any, Any]:
    """Return the same model twice: with TRL's head, and with the compact head on top."""
    models = []
    for compact in (False, True):
        torch.manual_seed(0)
        config = FAMILIES[family]()
        for name, value in changes.items():
            setattr(config, name, value)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        add_fused_lm_head(model, outputs=OUTPUTS)
        if compact:
            add_compact_head(model)
        models.append(model)
    return models[0], models[1]


def scored(batch: dict[str, Tensor]) -> int:
    return int((batch["index"] >= 0).sum())


# Plain, soft-capped (Gemma 2), divided (Granite) and multiplied (Cohere) logits, a bias (GPT-J).
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "gptj"])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_every_output_and_gradient_equals_trls(family: str, layout: str) -> None:
    theirs, ours = pair(family)
    batch = padded_layout(GROUPS, WIDTH) if layout == "padded" else shared_layout(GROUPS, WIDTH)
    inputs = model_inputs(ours.config, batch, torch.float32)
    expected = theirs(**{k: v for k, v in inputs.items() if k != "token_mask"}, fused_lm_head=True)
    got = ours(**inputs, fused_lm_head=True)
    for field in fields(FusedCausalLMOutput):
        mine, reference = getattr(got, field.name), getattr(expected, field.name)
        if reference is None:
            assert mine is None, field.name
        elif reference.is_floating_point():
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(mine, reference), field.name
    for outputs in (got, expected):
        (outputs.log_probs.sin().sum() + outputs.entropy.cos().sum()).backward()
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (reference.grad is None), name
        if reference.grad is not None:
            torch.testing.assert_close(mine.grad, reference.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_only_scored_positions_reach_the_head(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This also shows that TRL's head still reads the selected hidden states."""
    _, model = pair()
    batch = padded_layout(GROUPS, WIDTH) if layout == "padded" else shared_layout(GROUPS, WIDTH)
    seen: list[int] = []
    original = ChunkedLogProbFunction.forward

    def counted(ctx: Any, hidden: Tensor, *args: Any) -> Any:
        seen.append(hidden.shape[0])
        return original(ctx, hidden, *args)

    monkeypatch.setattr(ChunkedLogProbFunction, "forward", staticmethod(counted))
    model(**model_inputs(model.config, batch, torch.float32), fused_lm_head=True)
    assert seen == [scored(batch)]


def test_a_batch_without_any_label_is_a_differentiable_zero() -> None:
    _, model = pair()
    ids = torch.tensor([[5, 6, 7]])
    outputs = model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True)
    assert outputs.log_probs.tolist() == [[0, 0]]
    outputs.log_probs.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_nothing_is_left_hooked_even_after_an_error() -> None:
    _, model = pair()
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=ids, fused_lm_head=True)
    with pytest.raises(RuntimeError):
        model(input_ids=ids, labels=ids, position_ids=torch.zeros(1, 99, dtype=torch.long), fused_lm_head=True)
    assert not model.model._forward_hooks
    assert not model.model._forward_pre_hooks
    with pytest.raises(ValueError, match="labels or shift_labels"):
        model(input_ids=ids, fused_lm_head=True)


def test_without_the_fused_head_the_model_is_itself() -> None:
    theirs, ours = pair()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(ours(input_ids=ids, labels=ids).loss, theirs(input_ids=ids, labels=ids).loss)
    ours.generation_config.pad_token_id = theirs.generation_config.pad_token_id = 0
    generated = [m.generate(ids, max_new_tokens=4, do_sample=False) for m in (ours, theirs)]
    assert torch.equal(*generated)
    assert inspect.signature(ours.forward) == inspect.signature(theirs.forward)


def test_the_load_balancing_loss_counts_each_real_token_once() -> None:
    """Compare with the definition (Switch Transformer, arXiv 2101.03961, Eq. 4-6), each token counted once."""
    _, model = pair("mixtral", output_router_logits=True)
    model.eval()
    batch = shared_layout(GROUPS, WIDTH, 50, last_tokens=True)
    got = model(**model_inputs(model.config, batch, torch.float32), fused_lm_head=True).aux_loss

    routed = []  # per layer: router logits of the prompt once, then of each response
    for group in GROUPS:
        for k, completion in enumerate(group.completion_ids):
            ids = torch.tensor([group.prompt_ids + completion])
            logits = model.model(input_ids=ids, output_router_logits=True).router_logits
            routed.append(torch.stack(logits)[:, 0 if k == 0 else len(group.prompt_ids) :])
    flat = torch.cat(routed, dim=1).flatten(0, 1)
    probabilities = flat.softmax(-1)
    chosen = torch.nn.functional.one_hot(probabilities.topk(2).indices, 4).sum(1).float()
    expected = 4 * (chosen.mean(0) * probabilities.mean(0)).sum()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)

    without = shared_layout(GROUPS, WIDTH, 50)  # without the last token of each response, the result differs
    other = model(**model_inputs(model.config, without, torch.float32), fused_lm_head=True).aux_loss
    assert abs(other - expected) > 1e-4


# TRL internals that the compact head relies on


def test_trls_fused_head_has_the_form_that_is_relied_on() -> None:
    assert next(iter(inspect.signature(add_fused_lm_head).parameters)) == "model"
    source = inspect.getsource(add_fused_lm_head)
    assert "backbone_outputs.last_hidden_state" in source, "TRL's head no longer reads last_hidden_state"
    assert {"log_probs", "aux_loss", "label_mask"} <= {field.name for field in fields(FusedCausalLMOutput)}
