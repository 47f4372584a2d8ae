"""Sampling with vLLM, against a stand-in with its argument names; expected samples are those of `sample`."""

import json
import sys

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation import vllm_stand_in
from tests.helpers import ranked_rows, save_tiny_model, tiny_model, tiny_tokenizer
from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import sample
from trl_dpo_ext.evaluation.sampling.vllm_sampling import adapter_rank, sample_with_vllm

PROMPTS = ["the film was", "a", "two sisters who lose their house by the sea", "a"]


@pytest.fixture
def llm(monkeypatch):
    return vllm_stand_in.install(monkeypatch)


def draw(folder, prompts=PROMPTS, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sample_with_vllm(folder, tokenizer, prompts, **{"max_new_tokens": 8, "progress": False, **options})


@pytest.mark.parametrize("add_bos", [False, True])
def test_greedy_is_that_of_sample(llm, tiny_model_dir, tiny_bos_model_dir, add_bos):
    folder = tiny_bos_model_dir if add_bos else tiny_model_dir
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [*PROMPTS, tokenizer.bos_token + "a"]  # as a chat template writes it: still one BOS
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = sample(model, tokenizer, prompts, temperature=0, max_new_tokens=8, progress=False)
    assert draw(folder, prompts, temperature=0) == expected


def test_the_ends_are_those_of_the_generation_config(llm, tmp_path):
    folder = save_tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    free = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=8, progress=False)
    # The first prompt's third token ends a completion now, the tokenizer's EOS (here the second prompt's) doesn't.
    ends, eos = free.completion_ids[0][2], free.completion_ids[1][1]
    model.generation_config.eos_token_id = [ends]
    model.save_pretrained(folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = draw(folder, temperature=0)
    assert found == sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=8, progress=False)
    assert found.completion_ids[0] == free.completion_ids[0][:3]
    assert len(found.completion_ids[1]) > 2


def test_a_model_without_generation_config_ends_by_its_config(llm, tmp_path):
    folder = save_tiny_model(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [5, 6]}))
    draw(folder)
    assert llm.params[0].stop_token_ids == [5, 6]


def test_the_whole_distribution_is_asked_for(llm, tiny_model_dir):
    draw(tiny_model_dir, temperature=0.7)
    (loaded,) = llm.loaded
    assert loaded["generation_config"] == "vllm"
    assert "enable_lora" not in loaded
    for params in llm.params:
        assert {name: getattr(params, name) for name in vllm_stand_in.NEUTRAL} == vllm_stand_in.NEUTRAL
        assert (params.temperature, params.max_tokens) == (0.7, 8)


def test_each_row_has_a_stream_of_its_own(llm, tiny_model_dir):
    found = draw(tiny_model_dir, seed=3)
    assert found == draw(tiny_model_dir, seed=3)
    assert found.completion_ids[1] != found.completion_ids[3]  # the same prompt
    assert found.completion_ids != draw(tiny_model_dir, seed=4).completion_ids
    # Whatever the other prompts are.
    assert draw(tiny_model_dir, ["no plot", "a"], seed=3).completion_ids[1] == found.completion_ids[1]
    assert all(0 <= params.seed < 2**63 for params in llm.params)


def test_text_keeps_its_leading_space_and_loses_special_tokens(llm, tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    found = draw(tiny_model_dir, ["a"] * 64, max_new_tokens=24)
    special = set(tokenizer.all_special_ids)
    assert any(special & set(ids) for ids in found.completion_ids)
    for text, ids in zip(found.completions, found.completion_ids, strict=True):
        assert text == tokenizer.decode([i for i in ids if i not in special])
    assert any(text.startswith(" ") for text in found.completions)


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=12, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(tiny_tokenizer()), config)
    model.peft_config["default"].base_model_name_or_path = tiny_model_dir
    model.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(f"model_name_or_path: {tiny_model_dir}\ndtype: bfloat16\n")
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_samples_an_adapter(llm, adapter, tiny_model_dir, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked_rows(6, conversational=True)))
    command = ["eval", "sample", str(adapter), str(tmp_path / "a.jsonl"), "--data", str(data), "--samples", "2"]
    options = ["--temperature", "0", "--max-new-tokens", "4"]
    assert main([*command, *options, "--vllm"]) == 0
    (loaded,) = llm.loaded
    assert (loaded["model"], loaded["dtype"], loaded["max_lora_rank"]) == (tiny_model_dir, "bfloat16", 16)
    (adapter / "recipe.yaml").write_text(f"model_name_or_path: {tiny_model_dir}\ndtype: float32\n")
    plain = [*command[:3], str(tmp_path / "b.jsonl"), *command[4:]]
    assert main([*plain, *options]) == 0  # transformers, in float32 as the stand-in
    assert len(llm.loaded) == 1
    rows = read(tmp_path / "a.jsonl")
    assert rows == read(tmp_path / "b.jsonl")
    assert len(rows) == 12
    assert rows[0]["prompt"].startswith("User: ")
    assert main([*command, *options, "--vllm"]) == 0
    assert llm.loaded[1]["dtype"] == "auto"  # vLLM has no LoRA in float32
    plain[2] = command[2] = tiny_model_dir
    assert main([*command, *options, "--vllm"]) == main([*plain, *options]) == 0
    base = read(tmp_path / "a.jsonl")
    assert base == read(tmp_path / "b.jsonl")
    assert base != rows


@pytest.mark.parametrize(("rank", "reserved"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_reserved_ranks(tmp_path, rank, reserved):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    assert adapter_rank(str(tmp_path)) == reserved


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern={'q_proj': 4}"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"r": 513}, "rank 513, above 512"),
        ({"peft_type": "IA3"}, "peft_type='IA3', not LORA"),
    ],
    ids=str,
)
def test_adapters_that_vllm_would_not_take(llm, adapter, tmp_path, capsys, change, said):
    folder = tmp_path / "other"
    folder.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    assert main(["eval", "sample", str(folder), str(tmp_path / "x.jsonl"), "--data", "nowhere", "--vllm"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert f"trl-dpo-ext merge {folder}" in error
    assert not llm.loaded


def test_a_quantized_base_is_refused(llm, adapter, tmp_path, capsys):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    (folder / "recipe.yaml").write_text("model_name_or_path: x\nload_in_4bit: true\n")
    assert main(["eval", "sample", str(folder), str(tmp_path / "x.jsonl"), "--data", "nowhere", "--vllm"]) == 2
    assert "was quantized in training, which vLLM can't reproduce. Merge it" in capsys.readouterr().err
    assert not llm.loaded


def test_without_vllm_the_error_says_what_to_do(monkeypatch, tiny_model_dir, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main(["eval", "sample", tiny_model_dir, str(tmp_path / "x.jsonl"), "--data", "nowhere", "--vllm"]) == 2
    error = capsys.readouterr().err
    assert "pip install vllm" in error
    assert "sample with transformers: without --vllm" in error


@pytest.mark.parametrize("temperature", [0.001, 2.5, -1.0])
def test_temperatures_that_vllm_would_not_take(llm, tiny_model_dir, temperature):
    with pytest.raises(ValueError, match="temperature="):
        draw(tiny_model_dir, temperature=temperature)
    assert not llm.loaded
