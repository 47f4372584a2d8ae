"""Traps between what a row says and what is trained: order, files, templates, content blocks, tool calls."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from tests.traps.support import bugs, put_back
from trl_dpo_ext.data import DataError, format_dataset
from trl_dpo_ext.data.forms import ordered_completions
from trl_dpo_ext.data.lint import lint_splits
from trl_dpo_ext.data.row_reading import response_pair, unread_order


def refusal(row: dict[str, Any]) -> str:
    """The error about a dataset of this row alone, or an empty string if it is accepted."""
    try:
        format_dataset(Dataset.from_list([row]), name="train")
    except DataError as error:
        return str(error)
    return ""


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
