"""The parts of an estimate: layers, 4-bit bytes, kernels, optimizer states."""

from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from torch import nn
from transformers import AutoModelForCausalLM

from tests.memory.measure import FAMILIES, NF4, Shape, family_setup
from trl_dpo_ext.memory import estimate
from trl_dpo_ext.memory.peak_estimate import CONTEXT_PART
from trl_dpo_ext.memory.recipe_setup import with_args, with_length
from trl_dpo_ext.memory.stand_ins import Linear4bitStandIn
from trl_dpo_ext.memory.step import run_step


@pytest.mark.slow
@pytest.mark.parametrize(("method", "device"), [("full", "cpu"), ("qlora", "cuda")])
def test_layers_are_extrapolated_to_what_all_of_them_take(method, device, tmp_path):
    config = FAMILIES["llama"]()
    config.num_hidden_layers = 5
    run = replace(
        family_setup("llama", tmp_path, method=method, config=config, gradient_checkpointing=True), device=device
    )
    whole, extrapolated = estimate(run, all_layers=True), estimate(run)
    assert extrapolated.total == pytest.approx(whole.total, rel=0.005)
    assert extrapolated.peak_phase == whole.peak_phase
    for part, size in whole.parts.items():
        assert extrapolated.parts[part] == pytest.approx(size, rel=0.01, abs=whole.total / 500), part


def test_layers_that_differ_are_all_run(tmp_path):
    config = hf.Gemma3TextConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8,
        layer_types=[*["sliding_attention"] * 4, "full_attention"],
    )  # fmt: skip
    run = family_setup("gemma3", tmp_path, method="full", config=config, shape=Shape(1, 2, 32, 8))
    assert estimate(run).total == estimate(run, all_layers=True).total


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (100, 52), (7, 9)])
@pytest.mark.parametrize("nested", [True, False])
def test_the_4bit_stand_in_has_the_bytes_of_a_real_layer(rows, columns, nested):
    real = bnb.nn.Linear4bit(columns, rows, bias=True, compress_statistics=nested, quant_type="nf4")
    real.load_state_dict({"weight": torch.randn(rows, columns), "bias": torch.zeros(rows)})
    real = real.to("cpu")
    state = real.weight.quant_state
    constants = [state.absmax, state.code]
    if nested:
        constants += [state.state2.absmax, state.state2.code, state.offset]
    bits = NF4.to_dict() | {"bnb_4bit_use_double_quant": nested}
    stand_in = Linear4bitStandIn(rows, columns, torch.zeros(rows), torch.float32, hf.BitsAndBytesConfig.from_dict(bits))
    assert stand_in.weight.nbytes == real.weight.nbytes
    assert sorted(b.nbytes for b in stand_in.buffers()) == sorted(c.nbytes for c in constants)


def on_a_gpu(family, folder, **options):
    return replace(family_setup(family, folder, **options), device="cuda")


def test_the_head_never_holds_float_logits_of_all_tokens(tmp_path):
    vocabulary, shape = 200_000, Shape(1, 2, 8, 512)
    config = FAMILIES["llama"]()
    config.vocab_size = vocabulary
    parts = run_step(on_a_gpu("llama", tmp_path, shape=shape, config=config))["backward: head"]
    tokens = 2 * 512
    assert parts["LM head and loss"] + parts["backward pass"] < tokens * vocabulary * 4 / 4


def test_a_masked_layer_on_a_gpu_makes_its_own_additive_mask(tmp_path):
    # Without checkpointing every layer keeps one, [L, L] in the dtype of the queries: torch's memory-efficient kernel.
    shape = Shape(1, 2, 480, 16)
    length = 479 + 2 * 16 - 1  # the last response is one token shorter
    run = on_a_gpu("llama", tmp_path, shape=shape, prefix_sharing="true")
    padded = -(-length // 16) * 16
    masked, flex = (
        run_step(replace(run, attention=attention))["backward: head"]["activations"]
        for attention in ("sdpa", "flex_attention")
    )
    assert masked - flex > 2 * length * padded * 4


def test_flash_attention_shares_nothing_and_reads_no_mask(tmp_path):
    shape = Shape(1, 4, 480, 16)
    run = on_a_gpu("llama", tmp_path, shape=shape, gradient_checkpointing=True)
    flash, flex = (
        run_step(replace(run, attention=attention))["forward"] for attention in ("flash_attention_2", "flex_attention")
    )
    assert "attention mask" not in flash
    assert flash["activations"] > 2.5 * flex["activations"]


@pytest.mark.parametrize(
    ("optim", "per_parameter"),
    [("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2 + 8 / 256), ("paged_adamw_8bit", 2 + 8 / 256),
     ("paged_adamw_32bit", 8), ("lion_8bit", 1 + 4 / 256), ("sgd", 0), ("adafactor", 0.02)],
)  # fmt: skip
def test_optimizer_states(optim, per_parameter, tmp_path):
    config = FAMILIES["llama"]()
    config.hidden_size, config.intermediate_size = 256, 512
    run = on_a_gpu("llama", tmp_path, method="full", config=config, shape=Shape(1, 2, 4, 2), optim=optim)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    state = run_step(run)["update"]["optimizer state"]
    # Norms have fewer than 4096 weights, so their states stay 32 bit.
    small = sum(p.numel() for p in model.parameters() if p.numel() < 4096)
    count = sum(p.numel() for p in model.parameters())
    assert state == pytest.approx(count * per_parameter, abs=8 * small + 0.03 * count + 4096)


@pytest.mark.slow
def test_what_should_take_less_takes_less(tmp_path):
    run = on_a_gpu("llama", tmp_path, method="qlora", shape=Shape(2, 3, 96, 32))
    here = estimate(run)
    total = here.total
    assert "reference model" not in here.parts
    assert here.parts[CONTEXT_PART] > 0
    assert estimate(with_args(run, gradient_checkpointing=True)).total < total
    assert estimate(with_args(run, per_device_train_batch_size=1)).total < total
    assert estimate(with_args(run, prefix_sharing="false", packing=False)).total > total
    assert estimate(with_length(run, 64)).total < total
    assert estimate(replace(run, shape=replace(run.shape, responses=2))).total < total
    full = replace(run, quantization=None, peft=None)
    assert estimate(full).parts["reference model"] > 0
    assert "reference model" not in estimate(with_args(full, precompute_ref_log_probs=True)).parts


def test_nothing_stays_patched(tmp_path):
    from torch.nn import functional
    from trl.kernels import chunked_logprob

    before = [functional.scaled_dot_product_attention, functional.layer_norm, functional.softmax,
              chunked_logprob._use_triton, chunked_logprob._addmm_fp32, hasattr(chunked_logprob, "triton")]  # fmt: skip
    run = on_a_gpu("gpt2", tmp_path, method="full", shape=Shape(1, 2, 8, 4))
    estimate(run)
    after = [functional.scaled_dot_product_attention, functional.layer_norm, functional.softmax,
             chunked_logprob._use_triton, chunked_logprob._addmm_fp32, hasattr(chunked_logprob, "triton")]  # fmt: skip
    assert before == after
    assert type(nn.Linear(2, 2).weight.data) is torch.Tensor
