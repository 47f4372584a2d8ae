"""Traps in the data, which training can't fix: the linter names the rows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from datasets import Dataset

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, put_back
from trl_dpo_ext.data import DataError
from trl_dpo_ext.data.lint import dataset_checks, lint_splits, scan
from trl_dpo_ext.data.row_reading import ranked_row


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def row(number: int, **changes: Any) -> dict[str, Any]:
    chat = {"prompt": says("user", f"film {number}"), "chosen": says("assistant", f"great {number}")}
    return {**chat, "rejected": says("assistant", f"awful {number}"), **changes}


def split(*some: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(some))


# 6. BOS, EOS, boundary: in the chat template


def anything_ends_a_response(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan, "accepted_end_ids", lambda *_: frozenset(range(1000)))


def tokens_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan, "TOKEN_CHECKS", [])


@bugs(anything_ends_a_response, tokens_are_not_looked_at)
def test_trap_06_the_linter_names_missing_eos_doubled_bos_and_boundaries(bug, monkeypatch):
    with put_back(bug, monkeypatch):
        no_eos = helpers.tiny_tokenizer()
        no_eos.chat_template = no_eos.chat_template.replace("<|im_end|>", "")
        report = lint_splits({"train": split(row(0), row(1))}, tokenizer=no_eos)
        assert [(f.id, f.rows) for f in report.findings] == [("missing-eos", [0, 1])]

        plain = [{"prompt": p, "chosen": " great", "rejected": " slow"} for p in ("the film", "<s>the story", "a tale")]
        plain.append({"prompt": "the act", "chosen": "ors", "rejected": " slow"})
        report = lint_splits({"train": split(*plain)}, tokenizer=helpers.tiny_tokenizer(add_bos=True))
        assert [(f.id, f.rows) for f in report.findings] == [("doubled-bos", [1]), ("boundary-merge", [3])]


# 15. Identical responses, a response by the wrong role, duplicates across train and test


def accept_identical_responses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranked_row, "check_ranking", lambda *_: None)


def accept_any_role(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranked_row, "check_response", lambda *_: None)


def compare_within_splits_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dataset_checks, "is_training", lambda split: False)


FAULTY = [
    row(0),
    row(1, rejected=says("assistant", "great 1")),
    row(2, chosen=says("user", "great 2")),
    row(3),
]


@bugs(accept_identical_responses, accept_any_role, compare_within_splits_only)
def test_trap_15_the_linter_names_the_rows(bug, monkeypatch):
    with put_back(bug, monkeypatch):
        report = lint_splits({"train": split(*FAULTY), "test": split(row(4), row(3))})
        assert {(f.id, f.split, *f.rows) for f in report.at_least("error")} == {
            ("identical-responses", "train", 1),
            ("wrong-role", "train", 2),
            ("prompt-in-train-and-test", "test", 1),
        }


def number_the_rows_that_are_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan, "_numbered", enumerate)


@bugs(accept_identical_responses, accept_any_role, compare_within_splits_only, number_the_rows_that_are_left)
def test_trap_15_training_names_the_rows(bug, monkeypatch, tiny_model_dir, tmp_path, caplog):
    """Unusable rows raise an error or are dropped. The log names the other bad rows by the user's row numbers."""
    with put_back(bug, monkeypatch):
        with pytest.raises(DataError) as raised:
            support.trainer(tiny_model_dir, tmp_path, split(*FAULTY))
        assert "row 1, column 'rejected': responses 0 and 1 are the same" in str(raised.value)
        assert "row 2, column 'chosen': the response begins with the role 'user'" in str(raised.value)

        with caplog.at_level(logging.WARNING, "trl_dpo_ext"):
            data, test = split(*FAULTY, row(0)), split(row(4), row(3))
            support.trainer(tiny_model_dir, tmp_path, data, eval_dataset=test, invalid_rows="drop")
        assert "error prompt-in-train-and-test in eval: 1 row (1)" in caplog.text
        assert "warning duplicate-row in train: 1 row (4)" in caplog.text
