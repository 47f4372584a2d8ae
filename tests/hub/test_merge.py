"""The merged model is the one that was trained: quantized bases, kinds of adapters, tied embeddings, bad input."""

import copy
import json

import pytest
import torch
from peft import PeftModelForCausalLM
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests import helpers
from tests.hub import support
from trl_dpo_ext.cli import main
from trl_dpo_ext.hub import RunError, merge, read_run
from trl_dpo_ext.hub.distributions import compare_distributions, next_token_logits
from trl_dpo_ext.hub.merge import MergeError, merge_adapter
from trl_dpo_ext.modeling.quantized import keep_4bit_weights

# Tokens of the prompts, so that their rows show in the logits.
TOKENS = helpers.tiny_tokenizer()(support.PROMPTS[0])["input_ids"][:3]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough for 4-bit blocks of 64 weights; weights of usual size, tied embeddings."""
    return helpers.save_tiny_model(
        tmp_path_factory.mktemp("base"),
        hidden_size=64,
        intermediate_size=128,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )


def logits(model, tokenizer):
    return next_token_logits(model, tokenizer, support.PROMPTS)


def trained(adapter, base, quantized=True):
    """The model that was trained, by plain transformers and PEFT."""
    options = {"quantization_config": BitsAndBytesConfig(**support.NF4)} if quantized else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    keep_4bit_weights(model)  # or a CPU that has bfloat16 instructions would compute in bfloat16 from here on
    return PeftModelForCausalLM.from_pretrained(model, adapter)


def test_trap_13_a_qlora_adapter_merges_into_the_weights_it_was_trained_on(base, tmp_path):
    # To see it fail: in merge_adapter, pass None for base.quantization at the first _load (then KL = 0 is reported for
    # the wrong model, and the comparison with the plain PEFT model below fails), or let merge_in_place call
    # layer.merge for quantized layers.
    adapter = support.save_adapter(tmp_path / "adapter", base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = logits(trained(adapter, base), tokenizer)
    report = merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, dtype="float32", progress=False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    found = compare_distributions(expected, logits(merged, tokenizer))
    assert found["logit_difference_max"] < 1e-4
    assert found == pytest.approx(report["difference"], rel=0.5, abs=1e-9)
    assert json.loads((tmp_path / "merged" / "merge.json").read_text()) == report

    # The two naive merges, by plain PEFT, are other models; and so the test could tell.
    rounded = trained(adapter, base).merge_and_unload()
    assert compare_distributions(expected, logits(rounded, tokenizer))["kl_mean"] > 1e-4
    unquantized = trained(adapter, base, quantized=False).merge_and_unload()
    wrong = compare_distributions(expected, logits(unquantized, tokenizer))
    assert wrong["kl_mean"] > 1e-4
    report = merge_adapter(adapter, tmp_path / "original", into="original", prompts=support.PROMPTS, dtype="float32")
    assert report["difference"]["kl_mean"] == pytest.approx(wrong["kl_mean"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all", "target_modules": ["q_proj", "v_proj"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "down_proj"]},
        {"modules_to_save": ["norm"], "target_modules": ["q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"trainable_token_indices": TOKENS, "target_modules": ["q_proj"]},
        {"trainable_token_indices": TOKENS, "modules_to_save": ["norm"], "target_modules": ["q_proj"]},
        {"layer_replication": [[0, 2], [1, 2]], "target_modules": ["q_proj"]},
    ],
    ids=[
        "dora",
        "rslora",
        "bias",
        "lm_head saved",
        "norm saved",
        "embeddings",
        "lm_head",
        "tokens",
        "tokens and norm",
        "replicated layers",
    ],
)
def test_kinds_of_adapters(base, tmp_path, lora, quantized):
    adapter = support.save_adapter(tmp_path / "adapter", base, quantized=quantized, **copy.deepcopy(lora))
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = logits(trained(adapter, base, quantized), tokenizer)
    untrained = logits(AutoModelForCausalLM.from_pretrained(base), tokenizer)
    assert compare_distributions(expected, untrained)["kl_mean"] > 1e-3
    merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, dtype="float32", progress=False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert compare_distributions(expected, logits(merged, tokenizer))["logit_difference_max"] < 1e-4


def test_logits_are_computed_in_float32_whatever_the_weights_are_stored_in(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    widened = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).float()
    found = compare_distributions(logits(widened, tokenizer), logits(half, tokenizer))
    assert found["logit_difference_max"] < 1e-6
    assert half.dtype == torch.float16


@pytest.fixture
def adapter(base, tmp_path):
    return support.save_adapter(tmp_path / "adapter", base)


def test_what_the_merged_folder_holds(adapter, base, tmp_path):
    support.edit_json(adapter / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    report = merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS[:2], progress=False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float16
    assert not hasattr(merged.config, "quantization_config")
    assert merged.config.tie_word_embeddings
    assert (tmp_path / "merged" / "generation_config.json").exists()
    saved = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert saved.chat_template == AutoTokenizer.from_pretrained(adapter).chat_template
    assert report["quantization"]["bnb_4bit_quant_type"] == "nf4"
    assert {path.suffix for path in (tmp_path / "merged").iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert not (tmp_path / "merged.partial").exists()


def test_the_quantization_of_result_json_counts_more_than_the_recipe(adapter):
    nested = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    assert not read_run(adapter).trained_base().quantization["bnb_4bit_use_double_quant"]
    (adapter / "result.json").write_text(json.dumps({"base": {"dtype": "bfloat16", "quantization": nested}}))
    found = read_run(adapter).trained_base()
    assert (found.dtype, found.quantization) == ("bfloat16", nested)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: {"adapter": f / "nowhere"}, ["nowhere", "does not exist"]),
        (lambda f: (f / "recipe.yaml").unlink(), ["recipe.yaml", "load_in_4bit"]),
        (lambda f: (f / "adapter_config.json").write_text("{"), ["adapter_config.json", "can't be read"]),
        (lambda f: (f / "adapter_config.json").unlink(), ["neither adapter_config.json nor config.json"]),
        (lambda f: (f / "recipe.yaml").write_text("- a"), ["recipe.yaml", "a list", "mapping"]),
        (lambda f: support.edit_json(f / "adapter_config.json", peft_type="IA3"), ["IA3", "LoRA"]),
        (lambda f: support.edit_json(f / "adapter_config.json", base_model_name_or_path=None), ["base_model_name"]),
        (lambda f: (f / "result.json").write_text('{"format": 99}'), ["99", "newer", "pip install -U"]),
        (lambda f: {"output": f}, ["not an empty folder"]),
        (lambda f: {"dtype": "int8"}, ["'int8'", "bfloat16"]),
        (lambda f: {"into": "both"}, ["'both'", "'original'"]),
        (lambda f: {"prompts": None}, ["two prompts", "--prompts"]),
        (lambda f: {"prompts": ["a", " "]}, ["Prompt 2"]),
        (lambda f: {"base_model": str(f / "moved")}, ["moved", "--base-model"]),
    ],
)
def test_bad_input_stops_before_a_model_is_loaded(adapter, tmp_path, monkeypatch, change, said):
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda source, **k: real(source, **k) if "moved" in str(source) else pytest.fail("a model was loaded"),
    )
    changes = change(adapter)
    given = {"adapter": adapter, "output": tmp_path / "merged", "prompts": ["a", "b"], "progress": False}
    given |= changes if isinstance(changes, dict) else {}
    with pytest.raises((MergeError, RunError)) as caught:
        merge_adapter(**given)
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "merged.partial").exists()


def test_the_command(adapter, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(support.PROMPTS[:4]))
    arguments = ["merge", str(adapter), str(tmp_path / "merged"), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*arguments, "--into", "original"]) == 0
    said = capsys.readouterr().out
    assert "not the model that was trained" in said
    assert "KL" in said
    assert main(arguments) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_only_the_rows_of_trained_tokens_change(tmp_path):
    """A token that no prompt of the comparison has must be merged too."""
    base = helpers.save_tiny_model(tmp_path / "untied", hidden_size=64, intermediate_size=128)
    unseen = max(set(range(300)) - {i for text in support.PROMPTS for i in helpers.tiny_tokenizer()(text)["input_ids"]})
    adapter = support.save_adapter(
        tmp_path / "adapter", base, trainable_token_indices=[unseen], target_modules=["q_proj"]
    )
    merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, dtype="float32", progress=False)
    before = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").get_input_embeddings().weight
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [unseen]
    delta = load_file(adapter / "adapter_model.safetensors")
    (row,) = (value for name, value in delta.items() if "trainable_tokens_delta" in name)
    assert torch.equal(after[unseen], row[0])


def test_trap_a_merge_whose_check_fails_is_a_failed_merge(base, tmp_path, monkeypatch, capsys):
    # To see it fail: leave out _check_difference in merge_adapter.
    adapter = support.save_adapter(
        tmp_path / "adapter", base, trainable_token_indices=TOKENS, target_modules=["q_proj"]
    )
    (tmp_path / "prompts.txt").write_text("\n".join(support.PROMPTS))
    merged = tmp_path / "merged"
    arguments = ["merge", str(adapter), str(merged), "--prompts", str(tmp_path / "prompts.txt")]
    with monkeypatch.context() as patch:
        patch.setattr(merge.TrainableTokensLayer, "merge", lambda self, **options: None)  # drops the trained rows
        assert main(arguments) != 0
        assert "not the one that was trained: mean KL" in capsys.readouterr().err
        assert {path.name for path in tmp_path.iterdir()} == {"adapter", "prompts.txt"}
        assert main([*arguments, "--allowed-kl", "10"]) == 0
    assert json.loads((merged / "merge.json").read_text())["difference"]["kl_mean"] > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_check_lets_rounding_pass_and_nothing_else(base, tmp_path, dtype):
    adapter = support.save_adapter(tmp_path / "adapter", base)
    report = merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, dtype=dtype, progress=False)
    assert report["difference"]["kl_mean"] < merge._ALLOWED_KL[dtype] / 10
    for kl in (merge._ALLOWED_KL[dtype] * 1.01, float("nan")):
        with pytest.raises(MergeError, match="--allowed-kl"):
            merge._check_difference(kl, read_run(adapter).trained_base(), dtype, None)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"lora_bias": True}, "q_proj: the adapter has a bias .* none to merge it into"),
        ({"alora_invocation_tokens": TOKENS[:2]}, "q_proj can't be merged: aLoRA"),
    ],
)
def test_what_has_no_merged_form_is_a_sentence_and_leaves_nothing(base, tmp_path, lora, said, quantized):
    adapter = support.save_adapter(
        tmp_path / "adapter", base, quantized=quantized, **{"target_modules": ["q_proj"], **lora}
    )
    with pytest.raises(MergeError, match=said):
        merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_bias_of_the_adapter_merges_into_a_layer_that_has_one(tmp_path):
    base = helpers.save_tiny_model(
        tmp_path / "base", hidden_size=64, intermediate_size=128, attention_bias=True, initializer_range=0.05
    )
    adapter = support.save_adapter(tmp_path / "adapter", base, lora_bias=True, target_modules=["q_proj"])
    expected = logits(trained(adapter, base), AutoTokenizer.from_pretrained(base))
    merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, dtype="float32", progress=False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    found = compare_distributions(expected, logits(merged, AutoTokenizer.from_pretrained(base)))
    assert found["logit_difference_max"] < 1e-4


def test_an_unknown_kind_of_adapter_layer_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "TrainableTokensLayer", merge.LoraLayer)
    adapter = support.save_adapter(
        tmp_path / "adapter", base, trainable_token_indices=TOKENS, target_modules=["q_proj"]
    )
    with pytest.raises(MergeError, match=r"token_adapter is a TrainableTokensLayer, which can't be merged"):
        merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, progress=False)


def test_the_comparison_shows_its_progress(adapter, tmp_path, capsys):
    merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS)
    shown = capsys.readouterr().err
    assert "Trained model on the prompts" in shown
    assert "Merged model on the prompts" in shown
    merge_adapter(adapter, tmp_path / "again", prompts=support.PROMPTS, progress=False)
    assert "on the prompts" not in capsys.readouterr().err


def test_prompts_are_compared_as_training_tokenizes_them():
    """Without a second BOS, and without the EOS that a tokenizer may put after a text; a plain forward is the check."""
    tokenizer = helpers.tiny_tokenizer(add_bos=True)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    )
    model = helpers.tiny_model(tokenizer)
    found = next_token_logits(model, tokenizer, [f"{bos}the film", "a slow and tender story by the sea"])
    for text, logits in zip(("the film", "a slow and tender story by the sea"), found, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, atol=1e-5)


def test_a_merge_says_what_it_does_from_the_start(base, tmp_path, capsys):
    adapter = support.save_adapter(tmp_path / "adapter", base, quantized=False)
    capsys.readouterr()
    merge_adapter(adapter, tmp_path / "merged", prompts=support.PROMPTS, dtype="float32", device="cpu")
    said = capsys.readouterr().err
    assert said.startswith(f"Loading the base model {base} and its adapter.")
    assert "Writing the merged model" in said
    assert f"{len(support.PROMPTS)}/{len(support.PROMPTS)}" in said
    assert "prompt" in said
