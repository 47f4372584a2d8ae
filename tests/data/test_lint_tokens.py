"""What the linter finds with a tokenizer, and what a trainer logs of its data."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
from datasets import Dataset
from transformers import GenerationConfig

from tests import helpers
from tests.data.lint_rows import BOS_TOKENIZER, TOKENIZER, chat, found, lint, only, pair, ranked, says
from tests.training import support

# --------------------------------------------------------------------------------------------------------------- tokens


def with_template(tokenizer: Any, change: Any) -> Any:
    tokenizer = helpers.tiny_tokenizer(add_bos=tokenizer is BOS_TOKENIZER)
    tokenizer.chat_template = change(tokenizer.chat_template)
    return tokenizer


def test_missing_eos():
    no_eos = with_template(TOKENIZER, lambda t: t.replace("<|im_end|>", "<|end|>"))
    finding = only(lint([chat(0), chat(1)], tokenizer=no_eos))
    assert (finding.id, finding.severity, finding.rows) == ("missing-eos", "error", [0, 1])
    assert "response 0 ends with" in finding.note
    # Text after EOS, unless it is white space, as in ChatML.
    late = with_template(TOKENIZER, lambda t: t.replace("<|im_end|>\n", "<|im_end|> over"))
    assert only(lint([chat(0)], tokenizer=late)).id == "missing-eos"
    # The model stops at another token, as its generation config says.
    stops = GenerationConfig(eos_token_id=[TOKENIZER.pad_token_id, 2])
    pads = with_template(TOKENIZER, lambda t: t.replace("<|im_end|>", "<pad>"))
    assert only(lint([chat(0)], tokenizer=pads)).id == "missing-eos"
    assert lint([chat(0)], tokenizer=pads, generation_config=stops).findings == []
    # Of what is cut off, only the cut is reported.
    prompt = TOKENIZER.apply_chat_template(chat(0)["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    finding = only(lint([chat(0)], tokenizer=TOKENIZER, max_length=len(prompt) + 6))
    assert finding.id == "truncated-response"


def test_bos():
    rows = [pair(0), pair(1, prompt="<s>the film 1"), pair(2)]
    finding = only(lint(rows, tokenizer=BOS_TOKENIZER))
    assert (finding.id, finding.severity, finding.rows) == ("doubled-bos", "error", [1])
    assert lint(rows, tokenizer=TOKENIZER).findings == []
    no_bos = with_template(BOS_TOKENIZER, lambda t: t.replace("{% if true %}", "{% if false %}"))
    finding = only(lint([chat(0), chat(1)], tokenizer=no_bos))
    assert (finding.id, finding.severity, finding.rows) == ("missing-bos", "warning", [0, 1])
    assert "the tokens begin with '<|im_start|>" in finding.note


def test_boundary_merges():
    rows = [pair(0), pair(1, prompt="the act", chosen="ors forget", rejected=" was slow")]
    finding = only(lint(rows, tokenizer=TOKENIZER))
    assert (finding.id, finding.severity, finding.rows) == ("boundary-merge", "warning", [1])
    assert finding.note == "row 1: the last tokens of the prompt (2) change when a response follows"


def test_truncation():
    texts = [("the sea", " a", " b"), ("the film", " was slow and tender", " was"), ("the way", " a", " b")]
    texts.append(("the film was a slow and tender", " story", " film"))
    rows = [dict(zip(("prompt", "chosen", "rejected"), text, strict=True)) for text in texts]
    tokens = [
        [len(TOKENIZER(row["prompt"])["input_ids"])]
        + [len(TOKENIZER(row["prompt"] + row[c] + helpers.EOS)["input_ids"]) for c in ("chosen", "rejected")]
        for row in rows
    ]
    limit = tokens[1][1] - 3
    assert tokens[3][0] == limit + 3
    assert max(tokens[0] + tokens[2]) <= limit
    report = lint(rows, tokenizer=TOKENIZER, max_length=limit)
    assert found(report) == {"prompt-too-long": ("train", [3]), "truncated-response": ("train", [1])}
    responses = sum(length - prompt for prompt, *lengths in tokens[:3] for length in lengths)
    notes = {f.id: f.note for f in report.findings}
    assert notes["truncated-response"] == (
        f"1 of 6 responses lose 3 of {responses} tokens ({3 / responses:.1%}) to max_length={limit}"
    )
    assert notes["prompt-too-long"] == (
        f"1 of 4 prompts fill max_length={limit}; the longest has {tokens[3][0]} tokens"
    )
    assert lint(rows, tokenizer=TOKENIZER, max_length=max(itertools.chain(*tokens))).findings == []
    # A prompt of exactly max_length leaves no room, one token less leaves some.
    for limit, id in ((tokens[3][0], "prompt-too-long"), (tokens[3][0] + 1, "truncated-response")):
        assert found(lint(rows, tokenizer=TOKENIZER, max_length=limit))[id] == ("train", [3])
    with pytest.raises(ValueError, match="give the tokenizer"):
        lint(rows, max_length=9)


def test_identical_after_truncation():
    rows = [pair(0), pair(1, chosen=" was slow and great", rejected=" was slow and awful")]
    prompt = len(TOKENIZER(rows[1]["prompt"])["input_ids"])
    same = len(TOKENIZER(" was slow and")["input_ids"])
    assert found(lint(rows, tokenizer=TOKENIZER, max_length=prompt + same))["identical-tokens"] == ("train", [1])
    assert "identical-tokens" not in found(lint(rows, tokenizer=TOKENIZER, max_length=prompt + same + 1))
    # Responses that share a rank may end up the same.
    tied = ranked(2, completions=[" was slow and great", " was slow and awful", " b"], ranks=[1, 1, 0])
    assert found(lint([tied], tokenizer=TOKENIZER, max_length=prompt + same)).keys() == {"truncated-response"}
    # Without a limit: the tokenizer ends the one with the EOS that the other has in its text.
    rows[1].update(chosen=" great", rejected=f" great{helpers.EOS}")
    assert only(lint(rows, tokenizer=TOKENIZER)).rows == [1]


def test_rows_that_cannot_be_tokenized():
    alternating = with_template(
        TOKENIZER, lambda t: "{% if messages[0]['role'] != 'user' %}{{ raise_exception('User first.') }}{% endif %}" + t
    )
    rows = [chat(0), chat(1, prompt=[*says("x", "system"), *says("y", "user")]), chat(2)]
    finding = only(lint(rows, tokenizer=alternating))
    assert (finding.id, finding.severity, finding.rows) == ("cannot-tokenize", "error", [1])
    assert finding.note == "row 1: TemplateError: User first"
    none = with_template(TOKENIZER, lambda t: None)
    assert only(lint(rows, tokenizer=none)).rows == [0, 1, 2]
    assert lint(rows, tokenizer=none).as_dict()["splits"]["train"]["lengths"]["best_minus_worst"] is None


def test_text_that_the_template_leaves_out():
    kept = "for message in messages if message['role'] != 'system'"
    no_system = with_template(TOKENIZER, lambda t: t.replace("for message in messages", kept))
    rows = [chat(0), chat(1, prompt=[*says("be kind", "system"), *says("y", "user")]), chat(2)]
    finding = only(lint(rows, tokenizer=no_system))
    assert (finding.id, finding.severity, finding.rows) == ("text-left-out", "error", [1])
    assert finding.note == "row 1: the chat template leaves out the system message of the prompt ('be kind')"


def test_tool_calls_and_reasoning_are_text_where_there_is_no_template():
    call = {"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}
    rows = [chat(i, chosen=[{"role": "assistant", "tool_calls": [call], "reasoning_content": "why"}]) for i in range(2)]
    lengths = lint(rows).as_dict()["splits"]["train"]["lengths"]
    assert lengths["best_responses"]["max"] == len('why\n{"name": "lamp", "arguments": {"on": true}}')


def test_lengths_are_tokens_where_there_is_a_tokenizer():
    rows = [pair(i) for i in range(3)]
    lengths = lint(rows, tokenizer=TOKENIZER).as_dict()["splits"]["train"]["lengths"]
    ids = [TOKENIZER(rows[0]["prompt"] + rows[0][c] + helpers.EOS)["input_ids"] for c in ("chosen", "rejected")]
    assert lengths["unit"] == "tokens"
    assert lengths["prompts"]["median"] == len(TOKENIZER(rows[0]["prompt"])["input_ids"])
    assert lengths["best_responses"]["mean"] == len(ids[0]) - lengths["prompts"]["median"]
    assert lengths["worst_responses"]["max"] == len(ids[1]) - lengths["prompts"]["median"]
    assert lint(rows).as_dict()["splits"]["train"]["lengths"]["best_responses"]["min"] == len(rows[0]["chosen"])


# ---------------------------------------------------------------------------------------------------------- at training


def log_of(model: str, folder: Any, caplog: Any, data: Any, **options: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trl_dpo_ext.data.lint"):
        support.trainer(model, folder, data, **options)
    records = [r.getMessage() for r in caplog.records if r.name.startswith("trl_dpo_ext.data.lint")]
    assert len(records) <= 1
    return records[0].splitlines() if records else []


def test_a_training_run_says_the_findings_in_short(tiny_model_dir, tmp_path, caplog):
    rows = [pair(0), pair(1, chosen=" "), pair(2, prompt="the\x07film"), pair(3), pair(0), pair(5)]
    lines = log_of(
        *(tiny_model_dir, tmp_path, caplog, Dataset.from_list(rows)),
        eval_dataset={"other": Dataset.from_list([pair(8)]), "held_out": Dataset.from_list([pair(9), pair(3)])},
        invalid_rows="drop",
    )
    assert lines[0] == "The data have findings; `trl-dpo-ext lint` says what to do about them."
    # Numbers of the user's rows, though row 1 was dropped.
    assert lines[1:] == [
        "  error prompt-in-train-and-test in held_out: 1 row (1), the prompt is in train too.",
        "  warning control-character in train: 1 row (2), row 2: the prompt holds U+0007 at character 3.",
        "  warning duplicate-row in train: 1 row (4), the same prompt, responses and ranks as an earlier row.",
    ]
    assert log_of(tiny_model_dir, tmp_path, caplog, Dataset.from_list([pair(0), pair(1)])) == []


def test_a_training_run_says_what_is_wrong_with_tokens(tiny_model_dir, tmp_path, caplog):
    rows = [
        pair(0),
        pair(1, chosen=" was slow and great", rejected=" was slow and awful"),
        pair(2, prompt="<s>the film"),
    ]
    limit = len(TOKENIZER(rows[1]["prompt"] + " was slow and")["input_ids"])
    tokenizer = helpers.tiny_tokenizer(add_bos=True)
    data = Dataset.from_list(rows)
    lines = log_of(tiny_model_dir, tmp_path, caplog, data, max_length=limit + 1, processing_class=tokenizer)
    assert [line.split(",")[0] for line in lines[1:]] == ["  error doubled-bos in train: 1 row (2)"]
    assert "dropped 1 of 3 prompts" in caplog.text  # what it cuts to the same tokens
    no_eos = with_template(TOKENIZER, lambda t: t.replace("<|im_end|>", "<|end|>"))
    data = Dataset.from_list([chat(0), chat(1)])
    (_, line) = log_of(tiny_model_dir, tmp_path, caplog, data, processing_class=no_eos)
    assert line.startswith("  error missing-eos in train: 2 rows (0, 1), row 0: response 0 ends with")


def test_a_tokenized_dataset_is_looked_at_and_a_streamed_one_is_not(tiny_model_dir, tmp_path, caplog):
    tokens = [{"prompt_ids": [5, 6], "completion_ids": [[7, 2], [8, i, 2]], "ranks": [0, 1]} for i in (9, 10, 9)]
    lines = log_of(tiny_model_dir, tmp_path, caplog, Dataset.from_list(tokens))
    assert [line.split(",")[0] for line in lines[1:]] == ["  warning duplicate-row in train: 1 row (2)"]
    stream = Dataset.from_list([pair(0), pair(0)]).to_iterable_dataset()
    assert log_of(tiny_model_dir, tmp_path, caplog, stream) == []
