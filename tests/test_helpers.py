"""All tests depend on these helpers, so they are tested too."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import helpers
from trl_dpo_ext.data.row_reading.ranked_row import to_ranked


def test_the_tiny_model_loads_and_is_the_same_each_time(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    again = helpers.tiny_model(helpers.tiny_tokenizer())
    assert model.dtype is torch.float32
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    ids = torch.arange(12)[None]
    log_probs = model(ids).logits.log_softmax(-1)
    assert log_probs.std() > 0.3  # far from uniform: mixing tokens up must show


def test_the_tiny_tokenizer(tiny_model_dir, tiny_bos_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    text = "the film was a slow and tender story: 1+1=2, ¿verdad?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # merges were learned
    assert tokenizer.bos_token_id not in ids

    chat = [{"role": "user", "content": "film"}, {"role": "assistant", "content": "great"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>user\nfilm<|im_end|>\n<|im_start|>assistant\ngreat<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True, date="May 1") == (
        "<|im_start|>system\nToday is May 1<|im_end|>\n<|im_start|>user\nfilm<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token_id in tokenizer.apply_chat_template(chat)["input_ids"]

    with_bos = AutoTokenizer.from_pretrained(tiny_bos_model_dir)
    assert with_bos(text)["input_ids"] == [with_bos.bos_token_id, *ids]
    assert with_bos.apply_chat_template(chat, tokenize=False).startswith("<s><|im_start|>")
    assert helpers.tiny_tokenizer(pad_is_eos=True).pad_token_id == tokenizer.eos_token_id


def test_toy_rows_are_accepted_ragged_and_in_no_order():
    for options in ({}, {"ties": True}, {"scores": True}, {"conversational": True}, {"ties": True, "scores": True}):
        rows = helpers.ranked_rows(12, **options)
        ranked = [to_ranked(row, index=0, name="toy") for row in rows]
        assert {len(row["completions"]) for row in rows} == {2, 3, 4, 5}
        assert any(row["ranks"] != sorted(row["ranks"]) for row in ranked)
        assert any(len(set(row["ranks"])) < len(row["ranks"]) for row in ranked) is options.get("ties", False)
        assert rows == helpers.ranked_rows(12, **options)
        assert rows != helpers.ranked_rows(12, seed=1, **options)
    assert len(helpers.pair_dataset(3, conversational=True)) == 3


def test_a_fresh_process_imports_the_package_and_the_helpers():
    assert helpers.run_python("-c", "import trl_dpo_ext, tests.helpers; print('ok')").endswith("ok\n")
