"""Which form a dataset's columns have, and that a new form is one file."""

from __future__ import annotations

import importlib
import sys

import pytest
from datasets import Dataset

from trl_dpo_ext.data import DataError, FaultReason, format_dataset, forms
from trl_dpo_ext.data.row_reading import form_selection
from trl_dpo_ext.data.row_reading.form_selection import read_columns

NEW_FORM = """
from trl_dpo_ext.data.row_reading.column_form import ColumnForm, Order, PromptAndResponses


def read_texts(row):
    return PromptAndResponses(row["prompt"], [row["a"], row["b"]], [("a", "the response"), ("b", "the response")])


FORM = ColumnForm(
    name="a or b",
    columns=("prompt", "a", "b", "winner"),
    response_columns=("a", "b"),
    read_texts=read_texts,
    read_order=lambda row, count: Order([0, 1] if row["winner"] == "a" else [1, 0]),
)
"""


def form_of(*columns: str) -> tuple[str, ...]:
    return read_columns(columns, [], name="train").form.columns


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("prompt", "chosen", "rejected", "source"), ("prompt", "chosen", "rejected")),
        (("chosen", "rejected", "score_chosen"), ("chosen", "rejected")),
        (("completions", "prompt"), ("prompt", "completions")),
        (("prompt", "completions", "scores"), ("prompt", "completions", "scores")),
        (("scores", "ranks", "prompt", "completions"), ("prompt", "completions", "ranks")),
    ],
)
def test_the_form_that_reads_the_most_columns_is_taken(columns, expected):
    assert form_of(*columns) == expected


@pytest.mark.parametrize(
    ("columns", "reason", "message"),
    [
        (("prompt", "completions", "chosen"), FaultReason.TWO_FORMS, "found both 'chosen' and 'completions'"),
        (("image", "prompt", "completions"), FaultReason.IMAGES, "TRL's DPOTrainer"),
        (("prompt", "chosen"), FaultReason.MISSING_COLUMNS, "missing: rejected"),
    ],
)
def test_columns_without_a_form_or_with_two(columns, reason, message):
    with pytest.raises(DataError, match=f"^train dataset: .*{message}") as caught:
        form_of(*columns)
    assert caught.value.reason is reason


def test_a_new_form_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "winner_of_two.py").write_text(NEW_FORM)
    monkeypatch.setattr(forms, "FORMS", forms.FORMS)
    monkeypatch.setattr(forms, "__path__", [*forms.__path__, str(tmp_path)])
    try:
        found = importlib.import_module("trl_dpo_ext.registry").import_all(forms.__name__)
        monkeypatch.setattr(form_selection, "FORMS", tuple(module.FORM for module in found if hasattr(module, "FORM")))
        form_selection._choose_form.cache_clear()
        row = {"prompt": "p", "a": " x", "b": " y", "winner": "b"}
        (formatted,) = format_dataset(Dataset.from_list([row]), name="train")
        assert formatted == {"prompt": "p", "completions": [" x", " y"], "ranks": [1, 0], "row": 0}
        with pytest.raises(DataError, match="found both 'completions' and 'a' and 'b'"):
            form_of(*row, "completions")
        with pytest.raises(DataError, match=r"prompt \+ a \+ b \+ winner; missing: winner\. Did you mean 'winer'\?"):
            form_of("prompt", "a", "b", "winer")
    finally:
        sys.modules.pop(f"{forms.__name__}.winner_of_two", None)
        form_selection._choose_form.cache_clear()
