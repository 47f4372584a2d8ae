"""The fingerprint follows the weights that the forward reads, and nothing else."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import pytest
import torch
import xxhash
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests import helpers
from tests.training import support
from trl_dpo_ext.reference import FingerprintError, ReferenceIdentity, ReferenceMismatchError, fingerprint

NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=True
)
TOKENIZER = helpers.tiny_tokenizer()


def tiny(**config: Any) -> Any:
    return helpers.tiny_model(TOKENIZER, **config)


def adapted(model: Any, **changes: Any) -> Any:
    return get_peft_model(model, support.lora(init_lora_weights=False, **changes))


def test_by_hand():
    """The hash of sorted lines: name, dtype, shape and hash of the bytes."""
    layer = nn.Linear(2, 1, dtype=torch.float64)
    lines = [
        f"bias torch.float64 (1,) {xxhash.xxh3_128(layer.bias.detach().numpy().tobytes()).hexdigest()}",
        f"weight torch.float64 (1, 2) {xxhash.xxh3_128(layer.weight.detach().numpy().tobytes()).hexdigest()}",
    ]
    assert fingerprint(layer) == xxhash.xxh3_128("\n".join(lines).encode()).hexdigest()


def test_each_tensor_counts():
    model = tiny(attention_bias=True)
    start = fingerprint(model)
    seen = {start}
    for name, weight in model.named_parameters():
        before = weight.detach().clone()
        weight.data.view(-1)[-1] += 1e-3
        seen.add(fingerprint(model))
        weight.data.copy_(before)
        assert fingerprint(model) == start, name
    assert len(seen) == 1 + len(list(model.parameters()))
    model.register_buffer("shift", torch.zeros(1))
    assert fingerprint(model) not in seen


def test_names_shapes_and_dtypes_count():
    def changed(change: Any) -> str:
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        change(layer)
        return fingerprint(layer)

    def renamed(layer: Any) -> None:
        layer.other = layer.bias
        layer.bias = None

    changes = [
        lambda layer: None,
        renamed,
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(4, 1))),
        lambda layer: layer.half(),
        lambda layer: layer.bfloat16(),
    ]
    assert len({changed(change) for change in changes}) == len(changes)


def test_bfloat16_is_not_rounded_float32():
    model = tiny()
    assert fingerprint(copy.deepcopy(model).bfloat16()) != fingerprint(copy.deepcopy(model).bfloat16().float())


def test_what_does_not_count(tmp_path):
    model = tiny()
    start = fingerprint(model)
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)) == start
    assert fingerprint(copy.deepcopy(model).train().requires_grad_(False)) == start
    assert fingerprint(torch.compile(model)) == start
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel holds it
    assert fingerprint(wrapped) == start
    model.model.layers[0] = torch.compile(model.model.layers[0])  # as accelerate compiles regions
    assert fingerprint(model) == start
    strided = tiny()
    weight = strided.lm_head.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert fingerprint(strided) == start


def test_rotary_frequencies_count_but_not_their_last_bits():
    model = tiny()
    start = fingerprint(model)
    assert not [name for name in model.state_dict() if "inv_freq" in name]
    inv_freq = model.model.rotary_emb.inv_freq
    inv_freq.data = torch.nextafter(inv_freq, 2 * inv_freq)
    assert fingerprint(model) == start
    assert fingerprint(tiny(rope_parameters={"rope_type": "default", "rope_theta": 20000.0})) != start


def test_tied_weights_are_read_once(monkeypatch):
    read = []
    plain = xxhash.xxh3_128
    monkeypatch.setattr(xxhash, "xxh3_128", lambda data: read.append(len(data)) or plain(data))
    model = tiny(tie_word_embeddings=True)
    tied = fingerprint(model)
    size = model.lm_head.weight.numel() * 4
    assert read.count(size) == 1
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert fingerprint(model) == tied  # the forward is the same
    assert read.count(size) == 3


def test_an_adapter_that_is_off_is_not_there():
    model = tiny(tie_word_embeddings=True)
    base = fingerprint(model)
    peft = adapted(model, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"], use_dora=False)
    assert fingerprint(peft, ()) == base
    with peft.disable_adapter():
        assert fingerprint(peft) == base
    on = fingerprint(peft)
    assert on != base
    for part in ("layers.1.self_attn.q_proj.lora_B.default", "embed_tokens.lora_embedding_A", "norm.modules_to_save"):
        weight = next(weight for name, weight in peft.named_parameters() if part in name)
        weight.data += 1
        assert fingerprint(peft) != on, part
        assert fingerprint(peft, ()) == base, part
        weight.data -= 1
    peft.base_model.model.model.norm.original_module.weight.data += 1  # not read while the adapter is on
    assert fingerprint(peft, ()) != base


@pytest.mark.parametrize("kind", ["lora", "dora", "targets parameters", "trained tokens"])
def test_an_adapter_is_the_same_under_any_name(kind, tmp_path):
    changes = {
        "dora": {"use_dora": True},
        "targets parameters": {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
        "trained tokens": {"trainable_token_indices": [5, 7]},
    }.get(kind, {})
    peft = adapted(tiny(), **changes)
    expected = fingerprint(peft)
    assert expected != fingerprint(peft, ())
    peft.save_pretrained(tmp_path)
    peft = PeftModel.from_pretrained(tiny(), str(tmp_path), adapter_name="ref")
    assert fingerprint(peft) == fingerprint(peft, ("ref",)) == expected
    peft.add_adapter("other", peft.peft_config["ref"])
    assert fingerprint(peft) == expected
    assert fingerprint(peft, ("other",)) != expected


def test_the_scaling_of_an_adapter_counts():
    torch.manual_seed(0)
    one = adapted(tiny())
    torch.manual_seed(0)
    other = adapted(tiny(), lora_alpha=9)
    assert torch.equal(*[model.state_dict()["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
                         for model in (one, other)])  # fmt: skip
    assert fingerprint(one) != fingerprint(other)


def test_4bit_weights_and_their_statistics_count(tmp_path):
    folder = helpers.save_tiny_model(tmp_path, hidden_size=64, intermediate_size=128)

    def loaded(**changes: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=NF4, **changes)

    model = loaded()
    start = fingerprint(model)
    assert fingerprint(loaded()) == start
    assert fingerprint(adapted(loaded()), ()) == start
    assert fingerprint(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)) != start
    weight = model.model.layers[1].mlp.down_proj.weight
    for tensor in (weight.data, weight.quant_state.absmax, weight.quant_state.state2.absmax):
        tensor.view(-1)[0] += 1
        assert fingerprint(model) != start
        tensor.view(-1)[0] -= 1
        assert fingerprint(model) == start


def test_weights_that_cannot_be_read():
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(FingerprintError, match=r"bias: this weight isn't loaded|weight: this weight isn't loaded"):
        fingerprint(empty)

    fsdp1 = type("FullyShardedDataParallel", (nn.Linear,), {})
    with pytest.raises(FingerprintError, match="sharded over processes"):
        fingerprint(nn.Sequential(fsdp1(2, 2)))

    merged = adapted(tiny())
    merged.merge_adapter()
    with pytest.raises(FingerprintError, match="unmerge_adapter"):
        fingerprint(merged)


# Identity


THIS = ReferenceIdentity("second_model", "a frozen copy of the starting model 'org/model'", "0123456789abcdef" * 2)


def test_identity_round_trip(tmp_path):
    THIS.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.json"]
    assert ReferenceIdentity.from_dict(json.loads((tmp_path / "reference.json").read_text())) == THIS
    THIS.check_checkpoint(tmp_path)
    assert "second_model, fingerprint 0123456789ab)" in str(THIS)
    for bad in ([], {}, {**THIS.as_dict(), "kind": "guessed"}, {**THIS.as_dict(), "path": "x"}):
        with pytest.raises(ValueError, match="the reference"):
            ReferenceIdentity.from_dict(bad)


@pytest.mark.parametrize("kind", ["second_model", "adapters_off", "none"])
def test_another_reference_is_refused(kind, tmp_path):
    saved = ReferenceIdentity(kind, "what it was", None if kind == "none" else "f" * 32)
    saved.save(tmp_path)
    with pytest.raises(ReferenceMismatchError, match="another reference") as failure:
        THIS.check_checkpoint(tmp_path)
    for part in (str(tmp_path), str(saved), str(THIS), "resume_from_checkpoint"):
        assert part in str(failure.value)


def test_the_same_weights_in_another_role_are_the_same_reference(tmp_path):
    ReferenceIdentity("adapters_off", "the base model", THIS.fingerprint).save(tmp_path)
    THIS.check_checkpoint(tmp_path)


def test_without_a_reference_nothing_is_compared(tmp_path):
    THIS.save(tmp_path)
    ReferenceIdentity("none", "none", None).check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("unknown", "sentence"), [("file", "doesn't name the reference"), ("fingerprint", "can't be compared")]
)
def test_what_cannot_be_compared_is_said(unknown, sentence, tmp_path, caplog):
    if unknown == "fingerprint":
        ReferenceIdentity("second_model", "sharded", None).save(tmp_path)
    with caplog.at_level(logging.WARNING):
        THIS.check_checkpoint(tmp_path)
    assert sentence in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"kind": "second_model"}'])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "reference.json").write_text(content)
    with pytest.raises(ReferenceMismatchError, match=r"reference\.json(:|,| can't be read).*Take another checkpoint"):
        THIS.check_checkpoint(tmp_path)
