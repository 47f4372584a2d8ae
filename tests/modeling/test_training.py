"""Prompt sharing works with gradient checkpointing, adapters, quantized bases, autocast and wrappers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

from tests.modeling.tiny import OUTPUTS, by_layout, one_by_one, ragged_groups, shape_of, tiny
from trl_dpo_ext.modeling.compact_head import add_compact_head
from trl_dpo_ext.modeling.layout import padded_layout, shared_layout
from trl_dpo_ext.modeling.masks import model_inputs
from trl_dpo_ext.modeling.self_check import check_rows

GROUPS = ragged_groups()
SHAPE = shape_of(GROUPS)
PADDED = padded_layout(GROUPS, SHAPE[1])
SHARED = shared_layout(GROUPS, SHAPE[1], 45)


def loss_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logps = by_layout(model, batch, SHAPE).sum(2)
    loss = -F.logsigmoid(0.1 * (logps[:, :1] - logps[:, 1:])).sum(1).mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model: nn.Module, reference: nn.Module | None = None, relative: float = 1e-4) -> None:
    """Check that shared rows on `model` and padded rows on `reference` give the same loss and gradients."""
    loss, got = loss_and_gradients(model, SHARED)
    expected_loss, expected = loss_and_gradients(reference or model, PADDED)
    torch.testing.assert_close(loss, expected_loss, atol=0, rtol=relative)
    assert got
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name] - value).norm() <= relative * value.norm() + 1e-7, name


def lora(model: Any, **options: Any) -> Any:
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options))
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)  # from zero, half of the gradients would be zero
    return wrapped


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    plain = tiny(family).train()
    checkpointed = tiny(family).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        checkpointed.enable_input_require_grads()
    recomputed: list[bool] = []
    layer = (checkpointed.transformer.h if family == "gpt2" else checkpointed.model.layers)[0]
    layer.mlp.register_forward_pre_hook(lambda *_: recomputed.append(True))
    assert_same_step(checkpointed, plain)
    assert len(recomputed) > 1  # checkpointing was on


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_adapters_and_the_reference_without_them(dora: bool, reentrant: bool | None) -> None:
    base = tiny("llama")
    expected_reference = one_by_one(base, GROUPS).detach()
    model = lora(base, use_dora=dora).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    assert_same_step(model)
    with torch.no_grad(), model.disable_adapter():
        reference = by_layout(model, SHARED, SHAPE)
    torch.testing.assert_close(reference, expected_reference, atol=1e-5, rtol=0)
    assert check_rows(model, model.config, GROUPS[2]).ok


def test_adapter_dropout_changes_the_numbers_only_while_training() -> None:
    model = lora(tiny("llama"), lora_dropout=0.5)
    model.train()
    assert (by_layout(model, SHARED, SHAPE) - by_layout(model, PADDED, SHAPE)).abs().max() > 1e-3
    model.eval()
    assert_same_step(model)


def test_four_bit_base(tmp_path: Path) -> None:
    tiny("llama", hidden_size=64, head_dim=16, intermediate_size=64).save_pretrained(tmp_path)
    quantization = hf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, dtype=torch.float32)
    add_fused_lm_head(base, outputs=OUTPUTS)
    add_compact_head(base)
    assert any(p.dtype == torch.uint8 for p in base.parameters())
    assert_same_step(lora(base).train(), relative=1e-3)


def test_bfloat16_autocast() -> None:
    """Equal up to rounding: as far from float32 as padded rows under the same autocast."""
    model = tiny("llama").train()
    exact = by_layout(model, PADDED, SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        padded, shared = by_layout(model, PADDED, SHAPE), by_layout(model, SHARED, SHAPE)
    assert padded.dtype == shared.dtype == torch.float32
    noise = (padded - exact).norm()
    assert 0 < (shared - exact).norm() < 2 * noise
    assert (shared - padded).norm() < 2 * noise


def test_one_mask_serves_policy_and_reference() -> None:
    policy, reference = tiny("gemma2"), tiny("gemma2", seed=1)
    inputs = model_inputs(policy.config, SHARED, torch.float32)
    for model in (policy, reference):
        own = by_layout(model, SHARED, SHAPE)
        with torch.no_grad():
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        torch.testing.assert_close(outputs.log_probs.sum(), own.sum())


def test_ranks_with_different_numbers_of_rows(tmp_path: Path) -> None:
    """DDP averages the gradients of two processes, one of which has more rows."""
    single = tiny("llama")
    rows = [_rank_loss(single, single, rank) for rank in (0, 1)]
    (sum(loss for loss, _ in rows) / 2).backward()
    assert rows[0][1] != rows[1][1]
    # A process in which autograd has run before must not be forked.
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    gradients = torch.load(tmp_path / "gradients.pt")
    for name, p in single.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-4, msg=name)


def _rank_loss(called: nn.Module, model: Any, rank: int) -> tuple[Tensor, int]:
    batch = shared_layout([GROUPS[:2], GROUPS[2:]][rank], SHAPE[1], 20)
    inputs = model_inputs(model.config, batch, torch.float32)
    outputs = called(**inputs, use_cache=False, fused_lm_head=True)
    return outputs.log_probs.sum(), batch["input_ids"].shape[0]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    model = tiny("llama")
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert check_rows(wrapped, model.config, GROUPS[2]).ok
    _rank_loss(wrapped, model, rank)[0].backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/gradients.pt")
    with contextlib.suppress(RuntimeError):  # the other rank has already exited
        dist.barrier()
    dist.destroy_process_group()
