"""Rows that a model can't take are named before training; torch would say `index out of range in self`."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from tests import helpers
from tests.training import support
from trl_dpo_ext.training import ConfigError

SHORT = {"prompt": "the film was", "chosen": " great", "rejected": " awful"}
LONG = {"prompt": "the film was", "chosen": " great actors" * 30, "rejected": " awful"}


def model(kind, positions=64, vocabulary=320):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2, n_positions=positions))
    size = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 1}
    return OPTForCausalLM(
        OPTConfig(vocab_size=vocabulary, num_attention_heads=2, max_position_embeddings=positions, **size)
    )


def make(policy, folder, rows, **settings):
    return support.trainer(
        policy, folder, Dataset.from_list(rows), processing_class=helpers.tiny_tokenizer(), **settings
    )


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_rows_longer_than_the_positions(kind, adapted, tmp_path):
    policy = model(kind)
    if adapted:
        policy = get_peft_model(policy, support.lora(target_modules="all-linear"))
    with pytest.raises(ConfigError, match=r"train dataset, row 1: \d+ tokens.*64 positions.*max_length=64"):
        make(policy, tmp_path, [SHORT, LONG], max_length=None)
    trainer = make(model(kind), tmp_path, [SHORT, LONG], max_length=64, max_steps=1)
    assert support.train(trainer).losses


def test_an_evaluation_dataset_is_read_too(tmp_path):
    with pytest.raises(ConfigError, match="eval dataset, row 0"):
        make(model("gpt2"), tmp_path, [SHORT], eval_dataset=Dataset.from_list([LONG]), max_length=None)


def test_token_ids_without_an_embedding(tmp_path):
    tokenizer = helpers.tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    rows = [SHORT, {**SHORT, "chosen": " great<new>"}]
    policy = model("gpt2")
    assert len(tokenizer) == 321
    with pytest.raises(ConfigError, match=r"row 1: token 320 \('<new>'\).*resize_token_embeddings\(321\)"):
        support.trainer(policy, tmp_path, Dataset.from_list(rows), processing_class=tokenizer)
    # Gemma's tokenizer has one token more than its text models have embeddings; rows without it are fine.
    trainer = support.trainer(
        model("gpt2"), tmp_path, Dataset.from_list([SHORT] * 4), processing_class=tokenizer, max_steps=1
    )
    assert support.train(trainer).losses
