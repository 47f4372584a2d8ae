"""Traps between what a row says and what is trained: order, files, templates, content blocks, tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import jinja2
import pytest
import trl
from datasets import Dataset, IterableDataset, load_dataset
from tokenizers.processors import TemplateProcessing

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, put_back
from trl_dpo_ext.data import format_dataset, load_splits, prompts, tokenize, tokenize_dataset
from trl_dpo_ext.data.forms import ordered_completions
from trl_dpo_ext.data.lint import lint_splits, scan
from trl_dpo_ext.data.loading import dataset_loading, exact_types
from trl_dpo_ext.data.rendering import left_out_text, prompt_rendering
from trl_dpo_ext.data.rendering.template_arguments import unread_argument
from trl_dpo_ext.data.row_reading import ranked_row, response_pair, unread_order


def error_of(call: Callable[[], Any]) -> str:
    """The message of the error that a call raises, or an empty string."""
    try:
        call()
    except Exception as error:
        return str(error)
    return ""


def refusal(row: dict[str, Any]) -> str:
    """The error about a dataset of this row alone, or an empty string if it is accepted."""
    return error_of(lambda: format_dataset(Dataset.from_list([row]), name="train"))


# An order that isn't read


def believe_the_lists_order(patch: pytest.MonkeyPatch) -> None:
    form = ordered_completions.FORM
    patch.setitem(form.__dict__, "check_columns", lambda found: None)
    patch.setattr(ranked_row, "refuse_unread_order", lambda row, count, read: None)


def look_at_numbers_only(patch: pytest.MonkeyPatch) -> None:
    for names in ("_JUDGEMENT_NAMES", "_CHOICE_NAMES"):
        patch.setattr(unread_order, names, unread_order.re.compile("nothing"))


def look_at_names_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unread_order, "_is_number", lambda value: False)


UNREAD: dict[str, Any] = {
    "helpfulness_ratings": [1, 5],
    "mean_rewards": [0.5, 0.9],
    "overall_scores": [1.0, 1.0],
    "rating_list": ["bad", "good"],
    "best": 1,
    "winner": "b",
    "preference": 1,
    "upvotes": [3, 30],
    "stars": ["1", "5"],
    "is_good": [False, True],
}


@bugs(believe_the_lists_order, look_at_names_only, look_at_numbers_only)
def test_trap_20_an_order_that_is_not_read_is_an_error(bug, monkeypatch):
    """Completions beside judgements of them, whatever these are called: the list's order isn't believed."""
    with put_back(bug, monkeypatch):
        row = {"prompt": "q", "completions": [" bad", " good"]}
        for column, value in UNREAD.items():
            assert f"found the column '{column}'" in refusal({**row, column: value})
            data = Dataset.from_list([{**row, column: value}])
            assert [f.id for f in lint_splits({"train": data}).findings] == ["order-not-read"]


def test_other_columns_beside_completions_in_order_are_fine():
    row = {"prompt": "q", "completions": [" good", " bad"]}
    for other in (
        *({"num_tokens": [3, 9]}, {"models": ["a", "b"]}, {"votes_total": 7}, {"embedding": [1.0, 2.0, 3.0]}),
        *({"safety_score": 0.9}, {"label": "safe"}, {"winner": None}, {"upvotes": [4, 4]}),
    ):
        (formatted,) = format_dataset(Dataset.from_list([{**row, **other}]), name="train")
        assert formatted["ranks"] == [0, 1]


def believe_chosen(patch: pytest.MonkeyPatch) -> None:
    for form in ("preference_pair", "implicit_prompt_pair"):
        module = __import__(f"trl_dpo_ext.data.forms.{form}", fromlist=["FORM"])
        patch.setitem(module.FORM.__dict__, "read_order", lambda row, count: response_pair.Order([0, 1]))


@bugs(believe_chosen)
def test_trap_20_ranks_or_scores_that_contradict_chosen_are_an_error(bug, monkeypatch):
    with put_back(bug, monkeypatch):
        for pair in ({"prompt": "q", "chosen": " a", "rejected": " b"}, {"chosen": "q a", "rejected": "q b"}):
            for contradiction in ({"ranks": [1, 0]}, {"scores": [1.0, 2.0]}):
                assert "says that the rejected response is the better one" in refusal({**pair, **contradiction})
            for agreement in ({"ranks": [0, 1]}, {"scores": [2.0, 1.0]}, {"ranks": None, "scores": [1.0, 1.0]}):
                (row,) = format_dataset(Dataset.from_list([{**pair, **agreement}]), name="train")
                assert row["ranks"] == [0, 1]


# Files whose texts change while they are read


def let_readers_guess_types(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dataset_loading, "load_exactly", load_dataset)


CELLS = ["NA", "None", "null", "n/a", "007", "True", "4", "1e5", "2024-05-01", "nan", " x ", "-inf"]
DATES = ["2024-05-01", "2023-01-31 10:00:00", "2024-05-01T10:00:00Z"]


@bugs(let_readers_guess_types)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("kind", ["csv", "numbers.csv", "jsonl", "json"])
def test_trap_20_texts_in_files_stay_as_they_are(kind, place, streaming, bug, monkeypatch, tmp_path):
    """Cells that look like nulls, numbers, booleans or dates are texts."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = {"csv": CELLS, "numbers.csv": ["007", "8"]}.get(kind, DATES)
    rows = [{"prompt": f"which? {i}", "chosen": cell, "rejected": str(i)} for i, cell in enumerate(cells)]
    file = tmp_path / "data" / f"train.{kind}"
    file.parent.mkdir()
    if kind.endswith("csv"):
        file.write_text("prompt,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        file.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    with put_back(bug, monkeypatch):
        source = str(file if place == "file" else file.parent)
        assert list(load_splits(source, streaming=streaming)["train"]) == rows
        formatted = format_dataset(load_splits(source, streaming=streaming)["train"], name="train")
        assert [row["completions"][0] for row in formatted] == cells


def look_at_the_first_chunk_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exact_types, "_is_one_chunk", lambda config: True)


@bugs(let_readers_guess_types, look_at_the_first_chunk_only)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("files", [1, 2])
def test_trap_20_dates_in_a_later_chunk_are_texts(files, streaming, bug, monkeypatch, tmp_path):
    """The reader guesses types from the first chunk of the first file, and reads each chunk as it looks by itself."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = [{"prompt": "when? " * 1_800_000, "chosen": "at night", "rejected": "no", "note": None}]  # 10.8 MB
    dates = [{"prompt": f"when? {i}", "chosen": "2024-05-01", "rejected": "no", "note": "2024-05-02"} for i in range(3)]
    folder = tmp_path / "data"
    folder.mkdir()
    parts = [words + dates] if files == 1 else [words, dates]
    for number, rows in enumerate(parts):
        (folder / f"train-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with put_back(bug, monkeypatch):
        assert list(load_splits(str(folder), streaming=streaming)["train"]) == words + dates
        formatted = list(format_dataset(load_splits(str(folder), streaming=streaming)["train"], name="train"))
        assert formatted[-1]["completions"] == ["2024-05-01", "no"]


@bugs(let_readers_guess_types)
def test_trap_20_texts_within_lists_and_messages_stay_too(bug, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rankings = [{"prompt": "When?", "completions": DATES[:2], "ranks": [0, 1]}] * 2
    chats = [{"prompt": says("user", "When?"), **{c: says("assistant", d) for c, d in zip(PAIR, DATES, strict=False)}}]
    for name, rows in (("rankings", rankings), ("chats", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with put_back(bug, monkeypatch):
        (first, _) = format_dataset(load_splits(str(tmp_path / "rankings.jsonl"))["train"], name="train")
        assert first["completions"] == DATES[:2]
        (row,) = format_dataset(load_splits(str(tmp_path / "chats.jsonl"))["train"], name="train")
        assert row["completions"] == [says("assistant", date) for date in DATES[:2]]


PAIR = ("chosen", "rejected")


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def train_on_the_text_of_messages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranked_row, "read_messages", lambda value, column: value)
    patch.setattr(ranked_row, "read_responses", lambda value, column: value)


@bugs(train_on_the_text_of_messages)
@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
def test_trap_20_message_lists_stored_as_text_are_messages(write, bug, monkeypatch, tmp_path):
    prompt, chosen, rejected = says("user", "hi, it's me"), says("assistant", "hello"), says("assistant", "go")
    expected = {"prompt": prompt, "completions": [chosen, rejected], "ranks": [0, 1], "row": 0}
    rows = {
        "pair": {"prompt": write(prompt), "chosen": write(chosen), "rejected": write(rejected)},
        "implicit prompt": {"chosen": write(prompt + chosen), "rejected": write(prompt + rejected)},
        "ranking": {"prompt": write(prompt), "completions": [write(chosen), write(rejected)]},
        "prompt as text": {"prompt": "hi", "chosen": write(prompt + chosen), "rejected": write(prompt + rejected)},
    }
    with put_back(bug, monkeypatch):
        for row in rows.values():
            assert list(format_dataset(Dataset.from_list([row]), name="train")) == [expected]
        assert "is a message list, but the prompt is a string" in refusal(
            {"prompt": "hi", "completions": [write(chosen), write(rejected)]}
        )


def test_text_that_only_begins_like_a_list_stays_text():
    for text in ("[1, 2]", '["a"]', "[citation needed]", "[]", '[{"name": "x"}]'):
        (row,) = format_dataset(Dataset.from_list([{"prompt": text, "chosen": text, "rejected": "b"}]), name="train")
        assert row["prompt"] == row["completions"][0] == text


# A template that refuses a row


GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(number: int, system: str = "") -> dict[str, Any]:
    """A row of messages; its responses are of one length."""
    prompt = [*(says("system", system) if system else []), *says("user", f"the film {number}")]
    return {"prompt": prompt, **{c: says("assistant", f"{w} {number}") for c, w in zip(PAIR, "ab", strict=True)}}


def with_template(template: str) -> Any:
    tokenizer = helpers.tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def let_the_template_raise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tokenize, "_tokenize_or_refuse", lambda row, tokenizer, where: tokenize.tokenize_row(row, tokenizer))


@bugs(let_the_template_raise)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_trap_20_rows_that_the_template_refuses_are_named_or_dropped(
    split, bug, monkeypatch, tiny_model_dir, tmp_path, caplog
):
    """Template errors name the row; `invalid_rows="drop"` leaves it out, in training and in evaluation data."""
    rows, good = [chat(0), chat(1, system="be kind"), chat(2)], [chat(3), chat(4)]
    data = {"train": rows if split == "train" else good, "eval": rows if split == "eval" else good}

    def trainer(**options: Any) -> Any:
        train, held_out = (Dataset.from_list(data[name]) for name in ("train", "eval"))
        tokenizer = with_template(GEMMA)
        return support.trainer(
            tiny_model_dir, tmp_path, train, eval_dataset=held_out, processing_class=tokenizer, **options
        )

    with put_back(bug, monkeypatch):
        message = error_of(trainer)
        assert f"{split} dataset: 1 of 3 rows can't be trained on: cannot tokenize (1)" in message
        assert "row 1: the chat template refuses it (TemplateError: System role not supported)" in message
        made = trainer(invalid_rows="drop")
        left = made.train_dataset if split == "train" else made.eval_dataset
        assert left["row"][:] == [0, 2]
        assert f"{split} dataset: dropped 1 of 3 rows: cannot tokenize (1)." in caplog.text


@bugs(let_the_template_raise)
def test_trap_20_rows_of_a_stream_that_the_template_refuses(bug, monkeypatch, caplog):
    rows = [chat(0), chat(1, system="be kind"), chat(2)]

    def tokens(**options: Any) -> list[dict[str, Any]]:
        stream = format_dataset(IterableDataset.from_generator(lambda: iter(rows)), name="train")
        return list(tokenize_dataset(stream, with_template(GEMMA), name="train", max_length=None, **options))

    with put_back(bug, monkeypatch):
        message = error_of(tokens)
        assert message.startswith("train dataset, row 1: the chat template refuses it")
        assert [row["row"] for row in tokens(invalid_rows="drop")] == [0, 2]


# Content blocks and tool calls in a form that the template doesn't read


def give_templates_what_the_row_has(patch: pytest.MonkeyPatch) -> None:
    for module in (tokenize, prompt_rendering):
        patch.setattr(module, "fit_messages", lambda messages, tokenizer: messages)


def shipped(name: str) -> str:
    """A chat template as published with its model; TRL ships copies."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def blocks(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def decoded(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    """The whole text of each response, prompt included, as trained on."""
    (formatted,) = format_dataset(Dataset.from_list([row]), name="train")
    try:
        ids = tokenize.tokenize_row(formatted, tokenizer)
    except jinja2.TemplateError as error:
        return [str(error)]
    return [tokenizer.decode(ids["prompt_ids"] + completion) for completion in ids["completion_ids"]]


# Those that print the Python list, that raise, that print empty turns, and that read blocks only.
@bugs(give_templates_what_the_row_has)
@pytest.mark.parametrize("name", ["gemma", "llama3", "phi3", "qwen2_5", "qwen3", "lfm2", "idefics3", "llava_next"])
def test_trap_20_blocks_and_strings_give_the_same_text(name, bug, monkeypatch):
    tokenizer = with_template(shipped(name))
    row = {key: says(role, f"the {key}") for key, role in (("prompt", "user"), *((c, "assistant") for c in PAIR))}
    as_blocks = {key: blocks(value) for key, value in row.items()}
    reads_blocks_only = name in ("idefics3", "llava_next")
    readable = as_blocks if reads_blocks_only else row
    expected = [tokenizer.apply_chat_template(readable["prompt"] + readable[key], tokenize=False) for key in PAIR]
    assert all("the prompt" in text and f"the {key}" in text for text, key in zip(expected, PAIR, strict=True))
    with put_back(bug, monkeypatch):
        for form in (row, as_blocks):
            assert decoded(tokenizer, form) == expected
            prompt = tokenizer.apply_chat_template(readable["prompt"], tokenize=False, add_generation_prompt=True)
            assert prompt_rendering.prompt_text(form["prompt"], tokenizer) == prompt
            assert tokenizer.decode(prompt_rendering.prompt_token_ids(form["prompt"], tokenizer)) == prompt


@bugs(give_templates_what_the_row_has)
@pytest.mark.parametrize("name", ["gemma4_v2"])
def test_trap_20_a_role_whose_blocks_are_not_read_gets_a_string(name, bug, monkeypatch):
    """This template reads blocks of the user, but prints the Python list of the system's."""
    tokenizer = with_template(shipped(name))
    row = chat(0, system="be kind")
    expected = [tokenizer.apply_chat_template(row["prompt"] + row[key], tokenize=False) for key in PAIR]
    with put_back(bug, monkeypatch):
        assert decoded(tokenizer, {key: blocks(value) for key, value in row.items()}) == expected


def test_several_blocks_are_joined():
    tokenizer = with_template(shipped("llama3"))
    content = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {**chat(0), "prompt": [{"role": "user", "content": content}]}
    assert all("\n\none two<|eot_id|>" in text for text in decoded(tokenizer, row))


def call(arguments: Any, **message: Any) -> list[dict[str, Any]]:
    function = {"name": "lamp", "arguments": arguments}
    return [
        {"role": "assistant", "tool_calls": [{"type": "function", "id": "callabcde", "function": function}]} | message
    ]


@bugs(give_templates_what_the_row_has)
@pytest.mark.parametrize(
    "name", ["qwen2_5", "llama3_1", "glm4moe", "gptoss", "gemma4", "nemotron_3_nano", "deepseekv3"]
)
def test_trap_20_arguments_as_json_text_and_as_dictionaries_give_the_same_text(name, bug, monkeypatch):
    """OpenAI gives JSON text; most templates encode it again or crash, and DeepSeek's reads nothing else."""
    tokenizer = with_template(shipped(name))
    prompt = says("user", "light?")
    as_text, as_dict = call('{"on": true, "room": "hill"}'), call({"on": True, "room": "hill"})
    readable = call('{"on": true, "room": "hill"}', content="") if name == "deepseekv3" else as_dict
    expected = tokenizer.apply_chat_template(prompt + readable, tokenize=False)
    assert "lamp" in expected
    assert '\\"on' not in expected
    with put_back(bug, monkeypatch):
        for form in (as_text, as_dict):
            row = {"prompt": prompt, "chosen": form, "rejected": says("assistant", "no")}
            assert decoded(tokenizer, row)[0] == expected


# Nulls that mean something


def drop_every_null(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranked_row, "_without_empty_keys", lambda value, column: ranked_row._without_none(value))


@bugs(drop_every_null, let_readers_guess_types)
def test_trap_20_nulls_in_tool_calls_and_tools_are_kept(bug, monkeypatch, tmp_path):
    """From files and generators, where a null is the row's own, and not Arrow's for a key of another row."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    room = {"type": ["string", "null"], "enum": ["hill", None], "default": None}
    tool = {"type": "function", "function": {"name": "lamp", "parameters": {"properties": {"room": room}}}}
    rows = [
        {"prompt": says("user", "light?"), "chosen": call({"on": True, "room": None}), "tools": [tool]},
        {"prompt": says("user", "dark?"), "chosen": call({"on": True}, content=None), "tools": [tool]},
    ]
    rows = [{**row, "rejected": says("assistant", "no")} for row in rows]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with put_back(bug, monkeypatch):
        for data in (
            load_splits(str(tmp_path / "calls.jsonl"))["train"],
            load_splits(str(tmp_path / "calls.jsonl"), streaming=True)["train"],
            IterableDataset.from_generator(lambda: iter(rows)),
        ):
            first, second = format_dataset(data, name="train")
            assert first["completions"][0] == call({"on": True, "room": None})
            assert first["tools"] == [tool]
            assert second["completions"][0] == call({"on": True})


def test_nulls_that_arrow_adds_are_dropped_and_named(caplog):
    rows = [{**chat(0), "chosen": call({"on": True})}, {**chat(1), "chosen": call({"room": "hill"})}]
    formatted = format_dataset(Dataset.from_list(rows), name="train")
    assert [row["completions"][0] for row in formatted] == [call({"on": True}), call({"room": "hill"})]
    (said,) = [record.getMessage() for record in caplog.records if "None" in record.getMessage()]
    keys = [f"chosen.tool_calls.function.arguments.{key}" for key in ("on", "room")]
    assert f"holds None where a row lacks a key: {', '.join(keys)}. If a None is meant" in said


def test_nothing_is_said_of_keys_that_every_row_has(caplog):
    rows = [{**chat(number), "chosen": call({"on": True, "room": "hill"})} for number in range(2)]
    format_dataset(Dataset.from_list(rows), name="train")
    assert "None" not in caplog.text


# A template that leaves something out


def do_not_look_for_left_out_text(patch: pytest.MonkeyPatch) -> None:
    for module in (tokenize, scan):
        patch.setattr(module, "left_out", lambda row, tokens, tokenizer: None)


def look_in_the_prompt_too(patch: pytest.MonkeyPatch) -> None:
    """What a response says may stand in the prompt by chance, so it must be looked for in the response."""
    decode = left_out_text.left_out

    def anywhere(row: Any, tokens: Any, tokenizer: Any) -> Any:
        ids = [[*tokens["prompt_ids"], *completion] for completion in tokens["completion_ids"]]
        return decode(row, {**tokens, "completion_ids": ids}, tokenizer)

    for module in (tokenize, scan):
        patch.setattr(module, "left_out", anywhere)


THINK = "<think>\nbecause of seven\n</think>\n\n"
TOOL = {"type": "function", "function": {"name": "lamp", "description": "d", "parameters": {"type": "object"}}}
LEFT_OUT: dict[str, tuple[str, dict[str, Any], str]] = {
    "reasoning in the text": (
        "deepseek_r1_distill",
        {"chosen": says("assistant", f"{THINK}blue")},
        "the reasoning of response 0 ('because of seven')",
    ),
    "reasoning beside the text": (
        "qwen2_5",
        {"chosen": [{"role": "assistant", "content": "blue", "reasoning_content": "because of seven"}]},
        "the reasoning of response 0 ('because of seven')",
    ),
    "a tool call": ("llama3", {"rejected": call({"on": True}, content="")}, "a tool call of response 1 ('lamp')"),
    "tools": ("phi3", {"tools": [TOOL]}, "a tool of the prompt ('lamp')"),
    "the system message": (
        "no system",
        {"prompt": [*says("system", "be kind"), *says("user", "why?")]},
        "the system message of the prompt ('be kind')",
    ),
    "an earlier call": (
        "gemma3",
        {"prompt": [*says("user", "light?"), *call({"on": True}, content=""), *says("user", "why?")]},
        "a tool call of the prompt ('lamp')",
    ),
    "the text of an earlier answer's end": (
        "first only",
        {"chosen": [*says("assistant", "one"), *says("assistant", "why?")]},
        "the text of response 0 ('why?')",
    ),
}
TEMPLATES = {
    "no system": "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "first only": "{% for m in messages[:2] %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
}


@bugs(do_not_look_for_left_out_text)
@pytest.mark.parametrize("case", LEFT_OUT)
def test_trap_20_what_a_template_leaves_out_is_named(case, bug, monkeypatch):
    """At the start of training, where `invalid_rows="drop"` leaves the row out, and by the linter."""
    name, change, what = LEFT_OUT[case]
    tokenizer = with_template(TEMPLATES.get(name) or shipped(name))
    plain = {"prompt": says("user", "why?"), "chosen": says("assistant", "blue"), "rejected": says("assistant", "red")}
    rows = [{**plain, "prompt": says("user", "how?")}, {**plain, **change}]
    if "tools" in change:
        rows[0]["tools"] = None

    def tokens(**options: Any) -> Any:
        data = format_dataset(Dataset.from_list(rows, on_mixed_types="use_json"), name="train")
        return tokenize_dataset(data, tokenizer, name="train", max_length=None, **options)

    with put_back(bug, monkeypatch):
        assert f"row 1: the chat template leaves out {what}." in error_of(tokens)
        assert tokens(invalid_rows="drop")["row"][:] == [0]
        report = lint_splits({"train": Dataset.from_list(rows, on_mixed_types="use_json")}, tokenizer=tokenizer)
        finding = next(f for f in report.findings if f.id == "text-left-out")
        assert (finding.rows, finding.severity) == ([1], "error")
        assert what in finding.note


@bugs(do_not_look_for_left_out_text, look_in_the_prompt_too)
def test_trap_20_a_response_that_the_prompt_happens_to_hold_is_looked_for_in_the_response(bug, monkeypatch):
    tokenizer = with_template(shipped("deepseek_r1_distill"))
    row = {"prompt": says("user", "seven?"), "chosen": says("assistant", "<think>seven</think>no")}
    data = format_dataset(Dataset.from_list([{**row, "rejected": says("assistant", "yes")}]), name="train")
    with put_back(bug, monkeypatch):
        message = error_of(lambda: tokenize_dataset(data, tokenizer, name="train", max_length=None))
        assert "leaves out the reasoning of response 0 ('seven')" in message


PRINTED: dict[str, dict[str, Any]] = {
    "qwen3": {
        "prompt": [*says("user", "hi"), *says("assistant", f"{THINK}hello"), *says("user", "  why?\n")],
        "chosen": says("assistant", '<think>seven</think>blue \u00e9\U0001f600 "quoted" \\ back'),
        "rejected": call({"on": True, "rooms": ["hill \u00e9", 'a "b"'], "level": 0.5, "far": None}),
        "tools": [TOOL],
    },
    "gptoss": {"prompt": [*says("system", "be kind"), *says("user", "why?")], "chosen": call({"on": False})},
    "nemotron_3_nano": {"chosen": call({"on": True, "number": 7})},
    "gemma4": {"chosen": call({"on": True, "room": "hill"}), "tools": [TOOL]},
}


@pytest.mark.parametrize("name", PRINTED)
def test_what_a_template_prints_in_its_own_way_is_not_left_out(name):
    """Other white space, escapes, Python's True; the reasoning of earlier turns is never part of a prompt."""
    row = {"prompt": says("user", "why?"), "chosen": says("assistant", "blue"), "rejected": says("assistant", "red")}
    data = Dataset.from_list([{**row, **PRINTED[name]}], on_mixed_types="use_json")
    tokens = tokenize_dataset(
        format_dataset(data, name="train"), with_template(shipped(name)), name="train", max_length=None
    )
    assert len(tokens) == 1


# A tokenizer that adds EOS to every text


def let_the_tokenizer_add_eos(patch: pytest.MonkeyPatch) -> None:
    def as_it_comes(text: str, tokenizer: Any) -> list[int]:
        return list(tokenizer(text=text)["input_ids"])

    for module in (tokenize, prompt_rendering):
        patch.setattr(module, "text_token_ids", as_it_comes)


@bugs(let_the_tokenizer_add_eos)
@pytest.mark.parametrize("adds_eos", [True, False])
def test_trap_20_a_response_ends_with_one_eos_and_a_prompt_with_none(adds_eos, bug, monkeypatch):
    tokenizer = helpers.tiny_tokenizer(add_bos=True)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    if adds_eos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A {eos}",
            special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)],
        )
    elif bug is not None:
        pytest.skip("harmless for other tokenizers")
    row = {"prompt": "the film", "chosen": " was great", "rejected": f" was slow{eos}"}
    data = format_dataset(Dataset.from_list([row]), name="train")

    def ids(text: str) -> list[int]:
        return tokenizer(text=text, add_special_tokens=False)["input_ids"]

    with put_back(bug, monkeypatch):
        (tokens,) = tokenize_dataset(data, tokenizer, name="train", max_length=None)
        assert tokens["prompt_ids"] == ids(f"{bos}the film")
        assert tokens["completion_ids"] == [ids(f" was {word}{eos}") for word in ("great", "slow")]
        assert prompt_rendering.prompt_token_ids("the film", tokenizer) == tokens["prompt_ids"]


# Evaluation that starts from another prompt than training


def ignore_what_the_row_gives_the_template(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prompts, "prompt_text", lambda prompt, tokenizer, *_: prompt_rendering.prompt_text(prompt, tokenizer))


@bugs(ignore_what_the_row_gives_the_template, give_templates_what_the_row_has)
@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
def test_trap_20_held_out_prompts_are_those_of_training(name, bug, monkeypatch):
    """With the row's tools and template arguments, and with blocks as the template reads them."""
    tokenizer = with_template(shipped(name))
    row = {**chat(0), "prompt": blocks(chat(0)["prompt"]), "tools": [TOOL]}
    thinks = {"chat_template_kwargs": {"enable_thinking": False}} if name == "qwen3" else {}
    data = Dataset.from_list([{**row, **thinks}])
    with put_back(bug, monkeypatch):
        (prompt,) = prompts.held_out_prompts(data, tokenizer, 1)
        text = prompt.text
        assert "lamp" in text
        assert "the film 0" in text
        assert "'type'" not in text
        (tokens,) = tokenize_dataset(format_dataset(data, name="train"), tokenizer, name="train", max_length=None)
        assert list(prompt.token_ids) == tokens["prompt_ids"]
        assert text.startswith(tokenizer.decode(tokens["prompt_ids"]))
        assert name != "qwen3" or text.endswith("<think>\n\n</think>\n\n")


def do_not_look_at_what_the_template_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(left_out_text, "unread_argument", lambda *args: None)


@bugs(do_not_look_at_what_the_template_reads)
def test_trap_20_a_template_argument_that_the_template_never_reads_is_an_error(bug, monkeypatch):
    tokenizer = with_template(shipped("qwen3"))
    misspelt = Dataset.from_list(
        [
            {**chat(n), "chat_template_kwargs": {key: False}}
            for n, key in enumerate(("enable_thinking", "enable_thinkng"))
        ]
    )
    says_so = "chat_template_kwargs['enable_thinkng'], which it never reads (did you mean 'enable_thinking'?)"
    with put_back(bug, monkeypatch):
        rows = format_dataset(misspelt, name="train")
        said = error_of(lambda: tokenize_dataset(rows, tokenizer, name="train", max_length=None))
        assert f"row 1: the chat template leaves out {says_so}" in said
        assert says_so in error_of(lambda: prompts.tokenized_prompt(rows[1], tokenizer))
        assert "enable_thinkng" in str(lint_splits({"train": misspelt}, tokenizer=tokenizer).as_dict())


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
def test_template_arguments_that_are_read_are_taken(name):
    tokenizer = with_template(shipped(name))
    known = {"add_vision_id": None, "documents": [], "continue_final_message": False}  # Arrow's null, transformers' own
    row = {**chat(0), "chat_template_kwargs": known | ({"enable_thinking": False} if name == "qwen3" else {})}
    assert prompts.tokenized_prompt(row, tokenizer).token_ids
    for template in (trl.chat_template_utils.qwen3_training_chat_template, "{% if %}"):  # {% generation %}; not Jinja
        tokenizer.chat_template = template
        assert unread_argument({"enable_thinking": True}, None, tokenizer) is None


def let_the_template_raise_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    def unguarded(row: dict[str, Any], tokenizer: Any) -> prompts.TokenizedPrompt:
        return prompts.TokenizedPrompt(prompts.prompt_text(row["prompt"], tokenizer), ())

    patch.setattr(prompts, "tokenized_prompt", unguarded)


@bugs(let_the_template_raise_in_evaluation)
def test_trap_20_held_out_prompts_that_the_template_refuses_are_left_out(bug, monkeypatch, caplog):
    rows = [chat(0), chat(1, system="be kind"), chat(2)]
    with put_back(bug, monkeypatch):
        texts, message = [], ""
        try:
            texts = [
                prompt.text for prompt in prompts.held_out_prompts(Dataset.from_list(rows), with_template(GEMMA), 3)
            ]
        except jinja2.TemplateError as error:
            message = str(error)
        assert not message
        assert [text.count("the film") for text in texts] == [1, 1]
        refused = "the chat template refuses it (TemplateError: System role not supported)"
        assert f"test dataset: left out 1 of 3 prompts. The first: row 1: {refused}" in caplog.text
        message = error_of(lambda: prompts.held_out_prompts(Dataset.from_list(rows[1:2]), with_template(GEMMA), 3))
        assert message == f"test dataset: none of its prompts can be sampled from. The first: row 0: {refused}."
