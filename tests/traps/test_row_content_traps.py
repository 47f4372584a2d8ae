"""Traps between what a row says and what is trained: order, files, templates, content blocks, tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import datasets
import pytest
from datasets import Dataset, IterableDataset, load_dataset

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, put_back
from trl_dpo_ext.data import dataset_loading, format_dataset, load_splits, tokenize, tokenize_dataset
from trl_dpo_ext.data.forms import ordered_completions
from trl_dpo_ext.data.lint import lint_splits
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
    patch.setitem(form.__dict__, "read_order", lambda row, count: response_pair.Order(list(range(count))))


def look_at_names_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ordered_completions, "refuse_unread_numbers", lambda *_, **__: None)


def look_at_close_names_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unread_order, "_ORDER_NAMES", unread_order.re.compile("nothing"))


UNREAD: dict[str, Any] = {
    "ratings": [1, 5],
    "rewards": [0.5, 0.9],
    "overall_scores": None,
    "winner": "b",
    "preference": 1,
    "upvotes": [3, 30],
    "stars": ["1", "5"],
    "is_good": [False, True],
}


@bugs(believe_the_lists_order, look_at_names_only, look_at_close_names_only)
def test_an_order_that_is_not_read_is_an_error(bug, monkeypatch):
    """Completions beside judgements of them, whatever these are called: the list's order isn't believed."""
    with put_back(bug, monkeypatch):
        row = {"prompt": "q", "completions": [" bad", " good"]}
        for column, value in UNREAD.items():
            assert f"found the column '{column}'" in refusal({**row, column: value})
            data = Dataset.from_list([{**row, column: value}])
            assert [f.id for f in lint_splits({"train": data}).findings] == ["order-not-read"]


def test_other_columns_beside_completions_in_order_are_fine():
    row = {"prompt": "q", "completions": [" good", " bad"]}
    for other in ({"num_tokens": [3, 9]}, {"models": ["a", "b"]}, {"votes_total": 7}, {"embedding": [1.0, 2.0, 3.0]}):
        (formatted,) = format_dataset(Dataset.from_list([{**row, **other}]), name="train")
        assert formatted["ranks"] == [0, 1]


def believe_chosen(patch: pytest.MonkeyPatch) -> None:
    for form in ("preference_pair", "implicit_prompt_pair"):
        module = __import__(f"trl_dpo_ext.data.forms.{form}", fromlist=["FORM"])
        patch.setitem(module.FORM.__dict__, "read_order", lambda row, count: response_pair.Order([0, 1]))


@bugs(believe_chosen)
def test_ranks_or_scores_that_contradict_chosen_are_an_error(bug, monkeypatch):
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
def test_texts_in_files_stay_as_they_are(kind, place, streaming, bug, monkeypatch, tmp_path):
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


@bugs(let_readers_guess_types)
def test_texts_within_lists_and_messages_stay_too(bug, monkeypatch, tmp_path):
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
    patch.setattr(ranked_row, "parse_messages", lambda value: value)


@bugs(train_on_the_text_of_messages)
@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
def test_message_lists_stored_as_text_are_messages(write, bug, monkeypatch, tmp_path):
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
def test_rows_that_the_template_refuses_are_named_or_dropped(split, bug, monkeypatch, tiny_model_dir, tmp_path, caplog):
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
def test_rows_of_a_stream_that_the_template_refuses(bug, monkeypatch, caplog):
    rows = [chat(0), chat(1, system="be kind"), chat(2)]

    def tokens(**options: Any) -> list[dict[str, Any]]:
        stream = format_dataset(IterableDataset.from_generator(lambda: iter(rows)), name="train")
        return list(tokenize_dataset(stream, with_template(GEMMA), name="train", max_length=None, **options))

    with put_back(bug, monkeypatch):
        message = error_of(tokens)
        assert message.startswith("train dataset, row 1: the chat template refuses it")
        assert [row["row"] for row in tokens(invalid_rows="drop")] == [0, 2]
