"""Tokens of prompts and responses: those of TRL on pairs, whole texts on rankings, and a count of everything lost."""

from __future__ import annotations

import json
import types
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from trl import DPOTrainer

from tests import helpers
from trl_dpo_ext.data import DataError, Reads
from trl_dpo_ext.data.format import format_dataset
from trl_dpo_ext.data.tokenize import tokenize_dataset, tokenize_row

TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "x", "parameters": {}}}]
EOS = helpers.EOS


def by_trl(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None) -> list[tuple[Any, Any, Any]]:
    """Prompt, chosen and rejected ids of TRL's own preparation."""
    trainer = types.SimpleNamespace(_tokenizer=tokenizer)
    args = types.SimpleNamespace(max_length=max_length, truncation_mode="keep_start", dataset_num_proc=None)
    dataset = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in dataset]


def prepared(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None, **options: Any) -> Dataset:
    dataset = format_dataset(Dataset.from_list(rows), name="train", **options)
    return tokenize_dataset(dataset, tokenizer, name="train", max_length=max_length, **options)


def ours(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None) -> list[tuple[Any, Any, Any]]:
    return [(row["prompt_ids"], *row["completion_ids"]) for row in prepared(rows, tokenizer, max_length)]


def chat(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * len(texts), texts, strict=False)
    ]


CASES: dict[str, list[dict[str, Any]]] = {
    "plain": helpers.pair_rows(6),
    "conversational": helpers.pair_rows(6, conversational=True),
    "implicit prompt": [{"chosen": "the film was great", "rejected": "the film was slow"}],
    "implicit prompt, conversational": [{"chosen": chat("film", "great"), "rejected": chat("film", "slow")}],
    "several turns": [
        {
            "prompt": chat("film", "which", "this"),
            "chosen": [{"role": "assistant", "content": "great"}],
            "rejected": [{"role": "assistant", "content": "slow"}],
        }
    ],
    "EOS in the text": [{"prompt": "the film", "chosen": f" was great{EOS}", "rejected": " was slow"}],
    "tokens merge at the boundary": [{"prompt": "the act", "chosen": "ors forget", "rejected": " was slow"}],
    "tools": [{**row, "tools": TOOLS} for row in helpers.pair_rows(2, conversational=True)],
    "tools as JSON": [{**row, "tools": json.dumps(TOOLS)} for row in helpers.pair_rows(2, conversational=True)],
    "template arguments": [
        {**row, "chat_template_kwargs": {"date": "May 1"}} for row in helpers.pair_rows(2, conversational=True)
    ],
}


@pytest.mark.parametrize("tokenizer", [{}, {"add_bos": True}, {"pad_is_eos": True}], ids=["plain", "bos", "pad=eos"])
@pytest.mark.parametrize("case", CASES)
def test_pairs_have_trls_tokens(case, tokenizer):
    tokenizer = helpers.tiny_tokenizer(**tokenizer)
    expected = by_trl(CASES[case], tokenizer)
    assert len(expected) == len(CASES[case])
    assert ours(CASES[case], tokenizer) == expected


def test_tools_and_template_arguments_arrive():
    tokenizer = helpers.tiny_tokenizer()
    row = helpers.pair_rows(1, conversational=True)[0]
    for extra, text in ((CASES["tools"][0], '"look_up"'), (CASES["template arguments"][0], "Today is May 1")):
        assert text in tokenizer.decode(ours([extra], tokenizer)[0][0])
        assert text not in tokenizer.decode(ours([row], tokenizer)[0][0])


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("add_bos", [False, True])
def test_rankings_are_whole_texts_with_one_bos_and_an_eos(add_bos, conversational):
    tokenizer = helpers.tiny_tokenizer(add_bos=add_bos)
    rows = helpers.ranked_rows(6, ties=True, conversational=conversational)
    tokens = prepared(rows, tokenizer)
    assert set(tokens.column_names) == {"row", "prompt_ids", "completion_ids", "ranks"}
    assert tokens["row"][:] == list(range(6))
    assert [row["ranks"] for row in tokens] == [row["ranks"] for row in rows]
    for row, ids in zip(rows, tokens, strict=True):
        for completion, completion_ids in zip(row["completions"], ids["completion_ids"], strict=True):
            if conversational:
                whole = tokenizer.apply_chat_template(row["prompt"] + completion, tokenize=False)
            else:
                whole = row["prompt"] + completion + EOS
            sequence = ids["prompt_ids"] + completion_ids
            assert tokenizer.decode(sequence) == ("<s>" + whole if add_bos and not conversational else whole)
            assert sequence.count(tokenizer.bos_token_id) == int(add_bos)
            # The response ends the turn; nothing of the prompt is in it.
            assert completion_ids.count(tokenizer.eos_token_id) == 1
            text = completion[0]["content"] if conversational else completion
            assert tokenizer.decode(completion_ids).startswith(text + EOS)


def test_one_merge_moves_the_boundary_of_all_responses(caplog):
    tokenizer = helpers.tiny_tokenizer()
    assert tokenizer.tokenize("the act") == ["the", "Ġa", "c", "t"]
    assert tokenizer.tokenize("the actors") == ["the", "Ġa", "ctor", "s"]
    row = {"prompt": "the act", "completions": [" was slow", "ors forget", " has jokes"]}
    ids = tokenize_row(row, tokenizer)
    assert tokenizer.decode(ids["prompt_ids"]) == "the a"
    assert ids["merged"] == 2
    assert [tokenizer.decode(c) for c in ids["completion_ids"]] == [
        f"ct was slow{EOS}",
        f"ctors forget{EOS}",
        f"ct has jokes{EOS}",
    ]
    prepared([row, {**row, "completions": [" a", " b"]}], tokenizer)
    assert "in 1 of 2 prompts the last tokens come out differently" in caplog.text
    caplog.clear()
    prepared(helpers.ranked_rows(3), tokenizer)
    assert caplog.text == ""


def test_truncation(caplog):
    tokenizer = helpers.tiny_tokenizer()
    rows = [
        {"prompt": "the film", "completions": [" was slow and tender", " was", " was great"], "scores": [1, 0, 2]},
        {"prompt": "the film was a slow and tender", "completions": [" story", " film", " house"], "scores": [1, 2, 3]},
    ]
    whole = prepared(rows, tokenizer)
    lengths = [[len(row["prompt_ids"] + ids) for ids in row["completion_ids"]] for row in whole]
    assert lengths == [[14, 7, 10], [18, 18, 18]]
    assert len(whole[1]["prompt_ids"]) == 14

    tokens = prepared(rows, tokenizer, max_length=10)
    assert len(tokens) == 1  # the second prompt is longer
    assert [len(row) for row in tokens[0]["completion_ids"]] == [6, 3, 6]
    for cut, ids in zip(tokens[0]["completion_ids"], whole[0]["completion_ids"], strict=True):
        assert cut == ids[:6]
    assert tokens[0]["ranks"] == [1, 2, 0]
    assert tokens[0]["scores"] == [1.0, 0.0, 2.0]
    assert "train dataset: dropped 1 of 2 prompts" in caplog.text
    assert "max_length=10" in caplog.text
    assert "train dataset: cut 1 of 3 responses to max_length=10 tokens" in caplog.text

    for max_length, left in ((18, 2), (15, 2), (14, 1)):
        assert len(prepared(rows, tokenizer, max_length)) == left
    with pytest.raises(DataError, match=r"none of its 2 prompts is usable with max_length=4: prompts fill it"):
        prepared(rows, tokenizer, max_length=4)


def test_truncated_pairs_are_trls(caplog):
    tokenizer = helpers.tiny_tokenizer()
    rows = helpers.pair_rows(8)
    # TRL cuts in its collator.
    expected = [(p, c[: 15 - len(p)], r[: 15 - len(p)]) for p, c, r in by_trl(rows, tokenizer, max_length=15)]
    assert 0 < len(expected) < len(rows)
    assert any(len(p + c) == 15 for p, c, _ in expected)
    assert ours(rows, tokenizer, max_length=15) == expected


def test_streamed_rows_are_the_same():
    tokenizer = helpers.tiny_tokenizer()
    rows = helpers.ranked_rows(6, scores=True)
    expected = prepared(rows, tokenizer, max_length=15)
    assert 0 < len(expected) < len(rows)
    stream = format_dataset(IterableDataset.from_generator(lambda: iter(rows)), name="train")
    assert list(tokenize_dataset(stream, tokenizer, name="train", max_length=15)) == list(expected)


def test_ties_are_kept_for_losses_that_read_them():
    tokenizer = helpers.tiny_tokenizer()
    tied = {"prompt": "the film", "completions": [" was slow", " was great"], "ranks": [0, 0]}
    assert prepared([tied], tokenizer, reads=Reads(ties=True))[0]["ranks"] == [0, 0]
    tokens = Dataset.from_list([tied, {**tied, "ranks": [0, 1]}])
    assert len(tokenize_dataset(tokens, tokenizer, name="train", max_length=None)) == 1
