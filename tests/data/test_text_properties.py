"""Whatever a file holds: an unread order is an error, text stays text, messages stored as text are messages."""

from __future__ import annotations

import csv
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from trl_dpo_ext.data import DataError, format_dataset, load_splits, to_ranked

NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12).filter(lambda name: name.strip("_"))
NUMBERS = st.integers(-100, 100) | st.floats(-100, 100, allow_nan=False)

# Columns that mean something beside completions, and words that say that numbers measure something else.
READ = {
    "prompt",
    "completions",
    "ranks",
    "scores",
    "labels",
    "tools",
    "system",
    "weight",
    "image",
    "images",
    "messages",
}
SCORES = {"scores", "ratings", "rating", "rewards", "reward", "score"}
OTHER = ("length", "len", "size", "count", "num", "token", "word", "char", "index", "idx", "id", "seed", "time")
MORE_OTHER = ("latency", "cost", "temperature", "logp")


@settings(max_examples=200, deadline=None)
@given(NAMES, st.lists(NUMBERS, min_size=2, max_size=5, unique=True), st.booleans())
@example("ratings", [1, 5], False)
@example("rewards", [0.5, 0.9], True)
@example("helpfulness", [1, 5], False)
def test_numbers_beside_completions_order_them_or_are_an_error(column, numbers, as_text):
    """Never is the list's order believed beside a column with one number per response."""
    assume(column not in READ - SCORES)
    assume(not any(word in column for word in (*OTHER, *MORE_OTHER)))
    completions = [f"answer {place}" for place in range(len(numbers))]
    row = {"prompt": "q", "completions": completions, column: json.dumps(numbers) if as_text else numbers}
    if column in SCORES:
        ranks = to_ranked(row, index=0, name="train")["ranks"]
        best_first = sorted(range(len(numbers)), key=lambda place: -numbers[place])
        assert [ranks[place] for place in best_first] == list(range(len(numbers)))
    else:
        with pytest.raises(DataError):
            to_ranked(row, index=0, name="train")


JUDGEMENTS = st.sampled_from(["winner", "preference", "best", "choice", "human_preference", "winner_model_a"])
ANSWERS = st.sampled_from(["A", "response_b", "tie", 0, 1, "model_a", True])


@settings(max_examples=60, deadline=None)
@given(JUDGEMENTS, ANSWERS, st.sampled_from(["pair", "ranked", "scored", "ordered"]))
def test_a_choice_that_no_form_reads_is_an_error(column, value, form):
    rows = {
        "pair": {"prompt": "q", "chosen": "x", "rejected": "y"},
        "ordered": {"prompt": "q", "completions": ["x", "y"]},
        "ranked": {"prompt": "q", "completions": ["x", "y"], "ranks": [0, 1]},
        "scored": {"prompt": "q", "completions": ["x", "y"], "scores": [2, 1]},
    }
    with pytest.raises(DataError, match=f"found the column '{column}'"):
        to_ranked({**rows[form], column: value}, index=0, name="train")


TEXTS = (
    st.sampled_from(
        ["NA", "None", "null", "nan", "007", "True", "False", "1e5", "2024-05-01", "1", "-inf", "[1]", "{}"]
    )
    | st.dates().map(str)
    | st.datetimes().map(str)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
).filter(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS).filter(lambda t: t[1] != t[2]), min_size=1, max_size=4))
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_text_is_trained_as_it_is_written(kind, texts):
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train.{kind}"
        with path.open("w", newline="", encoding="utf-8") as file:
            if kind == "csv":
                writer = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(rows)
            elif kind == "json":
                json.dump(rows, file)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        formatted = format_dataset(load_splits(str(path))["train"], name="train")
        read = [(row["prompt"], *row["completions"]) for row in formatted]
    assert read == texts


CONTENT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(str.strip)


def message(role: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": CONTENT})


CHATS = st.tuples(message("user"), message("assistant"), message("assistant")).filter(lambda m: m[1] != m[2])


def sharegpt(message: dict[str, str]) -> dict[str, str]:
    return {"from": {"user": "human", "assistant": "gpt"}[message["role"]], "value": message["content"]}


WRITE = {
    "JSON": lambda m: json.dumps([m]),
    "JSON without escapes": lambda m: json.dumps([m], ensure_ascii=False, indent=1),
    "Python": lambda m: repr([m]),
    "one message": json.dumps,
    "ShareGPT": lambda m: json.dumps([sharegpt(m)]),
    "ShareGPT, not as text": lambda m: [sharegpt(m)],
}


@settings(max_examples=60, deadline=None)
@given(CHATS, st.sampled_from(sorted(WRITE)), st.sampled_from(["pair", "whole", "list", "label"]))
def test_messages_stored_as_text_are_messages(chat, way, form):
    user, good, bad = chat
    write = WRITE[way]
    rows = {
        "pair": {"prompt": write(user), "chosen": write(good), "rejected": write(bad)},
        "whole": {"prompt": write(user), "completions": [write(good), write(bad)]},
        "list": {"messages": write(user), "chosen": write(good), "rejected": write(bad)},
        "label": {"prompt": write(user), "completions": [write(good), write(bad)], "labels": [True, False]},
    }
    ranked = to_ranked(rows[form], index=0, name="train")
    assert (ranked["prompt"], ranked["completions"]) == ([user], [[good], [bad]])


@settings(max_examples=60, deadline=None)
@given(CHATS, st.data())
def test_a_cut_message_list_is_never_trained_as_text(chat, data):
    text = json.dumps([chat[0]])
    end = data.draw(st.integers(20, len(text) - 1))
    row = {"prompt": text[:end], "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError, match="begins like messages stored as text"):
        format_dataset(Dataset.from_list([row]), name="train")
