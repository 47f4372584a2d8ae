"""The undocumented transformers names used here. A failure says what changed and what breaks without it."""

import torch
import transformers
from torch import nn

from tests import helpers
from trl_dpo_ext._compat import transformers as compat

VERSION = f"transformers {transformers.__version__}"


def test_decoder_layers_are_gradient_checkpointing_layers():
    model = helpers.tiny_model(helpers.tiny_tokenizer())
    layers = [module for module in model.modules() if isinstance(module, compat.GradientCheckpointingLayer)]
    assert layers == list(model.model.layers), f"{VERSION}: the memory estimate finds no decoder layers."


def test_conv1d_holds_its_weight_transposed():
    layer = compat.Conv1D(3, 2)
    assert layer.weight.shape == (2, 3), f"{VERSION}: Conv1D is [in, out] no more: the estimate and merge count on it."
    assert not isinstance(layer, nn.Linear)


def test_the_modules_that_quantization_leaves_alone():
    model = helpers.tiny_model(helpers.tiny_tokenizer())
    kept = compat.modules_kept_unquantized(model, None)
    chosen = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    quantized = {name for name in chosen if compat.should_convert_module(name, kept)}
    assert quantized == set(chosen) - {"lm_head"}, f"{VERSION}: the estimate quantizes other layers than loading does."
    kept = compat.modules_kept_unquantized(model, ["q_proj"])
    assert not compat.should_convert_module("model.layers.0.self_attn.q_proj", kept), (
        f"{VERSION}: llm_int8_skip_modules is ignored."
    )


def test_set_attention():
    config = transformers.LlamaConfig()
    compat.set_attention(config, "flash_attention_2")
    assert config._attn_implementation == "flash_attention_2", (
        f"{VERSION}: set_attention has no effect: the estimate lays rows out for another attention."
    )


def test_loaded_from(tiny_model_dir):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert compat.loaded_from(model.config) == tiny_model_dir, (
        f"{VERSION}: a config no longer knows where it was loaded from: the reference has no name in logs and cards."
    )
    assert compat.loaded_from(transformers.LlamaConfig()) == ""
