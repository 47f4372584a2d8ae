"""Compare the masks with the rule, token by token, in the form of each attention implementation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.modeling.tiny import FAMILIES, by_layout, one_by_one, ragged_groups, shape_of, tiny
from trl_dpo_ext.modeling.layout import PromptGroup, shared_layout
from trl_dpo_ext.modeling.masks import UnsupportedAttentionError, attention_mask, model_inputs

GROUPS = ragged_groups()
SHAPE = shape_of(GROUPS)


def brute_force(batch: dict[str, Tensor], near) -> Tensor:
    """Return which real tokens attend to which, [R, 1, L, L]; `near(q, kv)` decides by position."""
    positions, segments, prefixes = (batch[n].tolist() for n in ("position_ids", "segment_ids", "prefix_ids"))
    rows, length = batch["input_ids"].shape
    out = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for r in range(rows):
        for q in range(length):
            for kv in range(q + 1):
                mine = segments[r][kv] in (segments[r][q], prefixes[r][q])
                out[r, 0, q, kv] = mine and near(positions[r][q], positions[r][kv])
    return out


def config(family: str = "llama", attention: str = "sdpa") -> hf.PreTrainedConfig:
    made = FAMILIES[family]()
    made._attn_implementation = attention
    return made


BATCH = shared_layout(GROUPS, SHAPE[1], 40)


def test_full_attention_is_prefix_and_own_segment() -> None:
    mask = attention_mask(config(), BATCH, torch.float32)
    assert torch.equal(mask, brute_force(BATCH, lambda q, kv: True))
    assert mask.any(-1).all()  # every query attends to something, padding too; an empty softmax is NaN


def test_a_sliding_window_counts_positions() -> None:
    mask = attention_mask(config("mistral_sliding"), BATCH, torch.float32)
    expected = brute_force(BATCH, lambda q, kv: q - kv < 4)
    assert torch.equal(mask, expected)
    by_column = brute_force(BATCH, lambda q, kv: True) & torch.ones(mask.shape[-2:]).triu(-3).bool()
    assert not torch.equal(expected, by_column)


def test_mixed_layers_get_a_mask_for_each_kind() -> None:
    masks = attention_mask(config("gemma2"), BATCH, torch.float32)
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert torch.equal(masks["full_attention"], brute_force(BATCH, lambda q, kv: True))
    assert torch.equal(masks["sliding_attention"], brute_force(BATCH, lambda q, kv: q - kv < 4))


def test_chunked_attention_counts_positions() -> None:
    chunked = config()
    chunked.attention_chunk_size = 5
    mask = attention_mask(chunked, BATCH, torch.float32)
    assert torch.equal(mask, brute_force(BATCH, lambda q, kv: q // 5 == kv // 5))


def test_eager_attention_gets_an_additive_mask_in_the_given_dtype() -> None:
    mask = attention_mask(config(attention="eager"), BATCH, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask == 0, brute_force(BATCH, lambda q, kv: True))
    assert (mask[mask != 0] == torch.finfo(torch.bfloat16).min).all()


@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma2", "qwen3"])
def test_eager_and_flex_attention_equal_one_sequence_at_a_time(family: str) -> None:
    expected = one_by_one(tiny(family, attention="eager"), GROUPS).detach()
    # Run uncompiled: the numbers still follow the BlockMask, without minutes of compiling. FlexAttention has no
    # backward on the CPU.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for attention in ("eager", "flex_attention"):
            logps = by_layout(tiny(family, attention=attention), BATCH, SHAPE)
            torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_flex_attention_skips_blocks_that_nobody_sees() -> None:
    """With two responses of 256 tokens, none of the 4 x 4 blocks between them is computed."""
    batch = shared_layout([PromptGroup([1] * 257, [[2] * 256, [3] * 256])], 2)
    with torch.compiler.set_stance("force_eager"):
        mask = attention_mask(config(attention="flex_attention"), batch, torch.float32)
    blocks = mask.to_dense()[0, 0]
    assert blocks.shape == (6, 6)
    assert blocks.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral_sliding", "mixtral"])
def test_another_mask_fails(family: str) -> None:
    """Negative control: the comparison notices a leak through every part of the rule."""
    model = tiny(family)
    expected = one_by_one(model, GROUPS)
    for wrong in (
        {"segment_ids": BATCH["segment_ids"].clamp(max=1), "prefix_ids": BATCH["prefix_ids"].clamp(max=1)},  # all
        {"segment_ids": BATCH["prefix_ids"]},  # responses attend to each other
        {"prefix_ids": BATCH["segment_ids"]},  # responses don't attend to the prompt
        {"position_ids": torch.arange(BATCH["input_ids"].shape[1]).expand_as(BATCH["input_ids"])},
    ):
        assert (by_layout(model, BATCH | wrong, SHAPE) - expected).abs().max() > 1e-2, wrong.keys()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: config(attention="flash_attention_2"), "flash_attention_2"),
        (lambda: config(attention="somebody_elses"), "somebody_elses"),
        (lambda: hf.GPTNeoConfig(attention_types=[[["global", "local"], 1]], num_layers=2), "window_size=256"),
        (lambda: hf.FalconConfig(alibi=True), "ALiBi"),
        (lambda: hf.MptConfig(), "ALiBi"),
        (lambda: hf.Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2), "conv"),
    ],
)
def test_attention_that_takes_no_mask_is_refused(made, message: str) -> None:
    refused = made()
    refused._attn_implementation = refused._attn_implementation or "sdpa"
    with pytest.raises(UnsupportedAttentionError, match=message):
        attention_mask(refused, BATCH, torch.float32)


def test_inputs_of_a_padded_batch_are_passed_on() -> None:
    batch = {name: torch.zeros(1) for name in ("input_ids", "attention_mask", "labels", "index", "ranks")}
    assert set(model_inputs(config(), batch, torch.float32)) == {"input_ids", "attention_mask", "labels"}


def test_without_masks_the_positions_tell_sequences_apart() -> None:
    """FlashAttention gets no mask. transformers derives the sequences from the positions, under SDPA too."""
    batch = shared_layout(GROUPS, SHAPE[1], 10_000, share=False)
    inputs = model_inputs(config(attention="flash_attention_2"), batch, torch.float32)
    assert "attention_mask" not in inputs
    model = tiny("llama")
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    logps = (
        torch.zeros(SHAPE)
        .flatten()
        .scatter(0, batch["index"][batch["index"] >= 0], outputs.log_probs[batch["index"] >= 0])
    )
    torch.testing.assert_close(logps.view(SHAPE), one_by_one(model, GROUPS), atol=1e-5, rtol=0)


def test_the_text_part_of_a_multimodal_config_counts() -> None:
    text = config("gemma2")
    whole = SimpleNamespace(get_text_config=lambda: text)
    assert set(attention_mask(whole, BATCH, torch.float32)) == {"full_attention", "sliding_attention"}
