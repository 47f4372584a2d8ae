"""Rows without a finding, to be changed, and short ways to lint them."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from tests import helpers
from trl_dpo_ext.data.lint import Finding, Report, lint_splits

TOKENIZER = helpers.tiny_tokenizer()
BOS_TOKENIZER = helpers.tiny_tokenizer(add_bos=True)


# Best and worst take turns with the words, so that none of them is longer on average.


def pair(number: int, **changes: Any) -> dict[str, Any]:
    chosen, rejected = ("great", "slow") if number % 2 else ("slow", "great")
    row = {"prompt": f"the film {number}", "chosen": f" was {chosen} {number}", "rejected": f" was {rejected} {number}"}
    return {**row, **changes}


def ranked(number: int, **changes: Any) -> dict[str, Any]:
    words = ("great", "slow", "awful") if number % 2 else ("awful", "slow", "great")
    row = {"prompt": f"the film {number}", "completions": [f" {word} {number}" for word in words], "ranks": [0, 1, 2]}
    return {**row, **changes}


def scored(number: int, **changes: Any) -> dict[str, Any]:
    row = ranked(number)
    return {"prompt": row["prompt"], "completions": row["completions"], "scores": [3.0, 2.0, 1.0], **changes}


def labelled(number: int, **changes: Any) -> dict[str, Any]:
    row = ranked(number)
    return {
        "prompt": row["prompt"],
        "completions": row["completions"][:2],
        "labels": [True, False],
        "scores": [2.0, 1.0],
        **changes,
    }


def choice(number: int, **changes: Any) -> dict[str, Any]:
    row = pair(number)
    return {"prompt": row["prompt"], "answer_a": row["chosen"], "answer_b": row["rejected"], "winner": "A", **changes}


def argilla(number: int, **changes: Any) -> dict[str, Any]:
    row = pair(number)
    fields = {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"]}
    return {**fields, "best.responses": ["response_a", "response_a"], **changes}


def chat(number: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": f"the film {number}"}]}
    row |= {column: says(pair(number)[column].strip()) for column in ("chosen", "rejected")}
    return {**row, **changes}


def says(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def lint(rows: list[dict[str, Any]] | dict[str, list[dict[str, Any]]], **options: Any) -> Report:
    splits = rows if isinstance(rows, dict) else {"train": rows}
    datasets = {
        name: Dataset.from_list(some, on_mixed_types="use_json") if some else Dataset.from_dict({"prompt": []})
        for name, some in splits.items()
    }
    return lint_splits(datasets, **options)


def found(report: Report) -> dict[str, tuple[str, list[int]]]:
    assert len({f.id for f in report.findings}) == len(report.findings)
    return {finding.id: (finding.split, finding.rows) for finding in report.findings}


def only(report: Report) -> Finding:
    assert len(report.findings) == 1, report.lines()
    return report.findings[0]
