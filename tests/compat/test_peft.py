"""The undocumented PEFT names used here. A failure says what changed and what breaks without it."""

import bitsandbytes as bnb
import peft
import torch
from peft import LoraConfig, get_peft_model

from tests import helpers
from trl_dpo_ext._compat import peft as compat

VERSION = f"PEFT {peft.__version__}"


def adapted(**options):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return get_peft_model(helpers.tiny_model(helpers.tiny_tokenizer()), config)


def test_whether_adapters_are_disabled():
    model = adapted()
    assert compat.adapters_are_disabled(model) is False, f"{VERSION}: fingerprints can't tell whether adapters are on."
    with model.disable_adapter():
        assert compat.adapters_are_disabled(model) is True, f"{VERSION}: a disabled adapter changes the fingerprint."


def test_the_adapters_of_a_layer():
    model = adapted()
    model.add_adapter("only_v", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    attention = model.get_base_model().model.layers[0].self_attn
    assert compat.adapters_of_layer(attention.q_proj) == {"default"}, f"{VERSION}: no fingerprint of adapters."
    assert compat.adapters_of_layer(attention.v_proj) == {"only_v"}


def test_lora_layers_merge_into_their_base_layer():
    layer = adapted().get_base_model().model.layers[0].self_attn.q_proj
    assert isinstance(layer, compat.LoraLayer), f"{VERSION}: merge finds no LoRA layers."
    assert isinstance(layer, compat.LoraLinear), (
        f"{VERSION}: merge has no plain LoRA layer to merge quantized ones with."
    )
    before = layer.get_base_layer().weight.clone()
    expected = before + layer.get_delta_weight("default")
    compat.LoraLinear.merge(layer, safe_merge=True)
    assert torch.allclose(layer.get_base_layer().weight, expected), f"{VERSION}: LoraLinear.merge merges otherwise."
    assert not torch.equal(before, expected)


def test_dequantize_module_weight():
    layer = bnb.nn.Linear4bit(64, 8, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    weight = torch.randn(8, 64)
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu")
    found = compat.dequantize_module_weight(layer)
    expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(found.float(), expected.float()), f"{VERSION}: merge gets other weights than training saw."


def test_every_layer_of_an_adapter_is_a_tuner_layer():
    model = adapted(trainable_token_indices=[1, 2], modules_to_save=["norm"])
    kinds = {type(module) for module in model.modules() if isinstance(module, compat.BaseTunerLayer)}
    assert kinds == {compat.LoraLinear, compat.TrainableTokensLayer}, (
        f"{VERSION}: merge finds other layers than those it merges: {kinds}."
    )


def test_trainable_tokens_merge_into_their_base_layer():
    layer = adapted(trainable_token_indices=[1, 2]).get_base_model().get_input_embeddings().token_adapter
    with torch.no_grad():
        layer.trainable_tokens_delta["default"].fill_(3.0)
    layer.merge(safe_merge=True)
    assert (layer.get_base_layer().weight[1:3] == 3).all(), f"{VERSION}: merge drops the rows of trained tokens."
    assert not (layer.get_base_layer().weight[3:] == 3).any()
