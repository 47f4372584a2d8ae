"""Reads datasets row by row, runs the checks, and reports."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from ..converters import Converter, check_converter, convert_row, get_converter
from ..rows import DataError, check_columns, to_ranked
from ..tokenize import tokenize_row
from .dataset_checks import TABLE_CHECKS, Table
from .report import Finding, Report
from .row_checks import ROW_CHECKS, TOKEN_CHECKS, Check, TokenFacts, fault_id, stop_ids, text_of
from .row_store import Groups, content_hash

logger = logging.getLogger(__name__)


class _Split:
    """What is known of one split while it is read."""

    def __init__(self, name: str, facts: TokenFacts | None, converter: Converter | None = None) -> None:
        self.name, self.facts, self.converter = name, facts, converter
        self.rows: dict[str, list[int]] = {}
        self.notes: dict[str, str] = {}
        self.contents, self.lengths = Groups("Q"), Groups("q")
        self._conversational: bool | None = None

    def hit(self, id: str, row: int, note: str) -> None:
        """Note a finding; the first row's note stands for all."""
        self.notes.setdefault(id, f"row {row}: {note}")
        self.rows.setdefault(id, []).append(row)

    def read(self, number: int, row: dict[str, Any]) -> None:
        """Check a row of any accepted form, or one that the converter brings into it."""
        try:
            if self.converter is not None:
                row = convert_row(row, number, self.converter, self.name)
            ranked = to_ranked(row, index=number, name=self.name, reads_ties=True, conversational=self._conversational)
        except DataError as error:
            # The message begins with split and row, as the finding does.
            note = str(error).removeprefix(f"{self.name} dataset, row {number}").lstrip(",: ")
            self.hit(fault_id(error.reason), number, note.rstrip("."))
            return
        self._conversational = isinstance(ranked["prompt"], list)
        if max(ranked["ranks"]) == 0:
            self.hit("all-tied", number, f"all {len(ranked['ranks'])} responses are equally good")
        self.read_text(number, ranked)
        if self.facts is not None:
            try:
                tokens = tokenize_row(ranked, self.facts.tokenizer)
            except Exception as error:  # a chat template is a program, and may fail in any way
                self.hit("cannot-tokenize", number, f"{type(error).__name__}: {error}".splitlines()[0].rstrip("."))
            else:
                self.read_tokens(number, {**tokens, "ranks": ranked["ranks"]})

    def read_text(self, number: int, ranked: dict[str, Any]) -> None:
        """Check a row of the internal form."""
        self._run(ROW_CHECKS, number, ranked)
        prompt, responses, ranks = ranked["prompt"], ranked["completions"], ranked["ranks"]
        self.contents.add(number, content_hash(prompt), [content_hash(r) for r in responses], ranks)
        if self.facts is None:
            self.lengths.add(number, len(text_of(prompt)), [len(text_of(r)) for r in responses], ranks)

    def read_tokens(self, number: int, tokens: dict[str, Any]) -> None:
        """Check a tokenized row."""
        self._run(TOKEN_CHECKS, number, tokens, self.facts)
        self.lengths.add(number, len(tokens["prompt_ids"]), [len(c) for c in tokens["completion_ids"]], tokens["ranks"])

    def _run(self, checks: Sequence[Check], number: int, *arguments: Any) -> None:
        for check in checks:
            assert check.run is not None
            if note := check.run(*arguments):
                self.hit(check.id, number, note)

    def table(self) -> Table:
        if self.facts is None:
            return Table(self.contents, self.lengths)
        return Table(self.contents, self.lengths, "tokens", self.facts.max_length)

    def findings(self) -> list[Finding]:
        return [Finding(id, self.name, len(rows), rows, self.notes[id]) for id, rows in self.rows.items()]


def lint_splits(
    splits: Mapping[str, Dataset],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_config: Any = None,
    max_length: int | None = None,
    converter: str | None = None,
    progress: bool = False,
) -> Report:
    """Look for what makes a preference dataset bad without an error in training. Nothing is changed.

    Args:
        splits: datasets of any accepted form by name; those whose name begins with "train" are for training.
        tokenizer: also check its tokens (templates, BOS, EOS, boundaries), and count lengths in tokens.
        generation_config: the model's; its EOS ids end a response too.
        max_length: tokens of prompt and completion together; also say what is cut off. Needs the tokenizer.
        converter: what brings the rows into an accepted form, as a recipe's `dataset_converter`.
        progress: show a progress bar.

    Returns:
        The findings, with row numbers from 0.

    Raises:
        ValueError: `max_length` without a tokenizer.
        UnknownNameError: no such converter.

    Example:
        >>> rows = [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * 2
        >>> print(*lint_splits({"train": Dataset.from_list(rows)}).lines())
        warning duplicate-row in train: 1 row (1), the same prompt, responses and ranks as an earlier row.
    """
    if max_length is not None and tokenizer is None:
        raise ValueError(f"max_length={max_length} counts tokens; give the tokenizer too.")
    facts = None if tokenizer is None else TokenFacts(tokenizer, stop_ids(tokenizer, generation_config), max_length)
    found = None if converter is None else get_converter(converter)
    scans, findings = {}, []
    for name, dataset in splits.items():
        scan = scans[name] = _Split(name, facts, found)
        try:
            if not len(dataset):
                raise DataError(f"{name} dataset: it has no rows.", "no rows")
            if found is None:
                check_columns(dataset.column_names, name=name)
            else:
                check_converter(found, dataset.column_names, name)
        except DataError as error:
            note = str(error).removeprefix(f"{name} dataset: ").rstrip(".")
            findings.append(Finding(fault_id(error.reason), name, len(dataset), [], note))
            continue
        rows = tqdm(dataset.with_format(None), desc=f"Checking {name}", disable=not progress)
        for number, row in enumerate(rows):
            scan.read(number, row)
    return _report(scans, {name: len(dataset) for name, dataset in splits.items()}, findings)


def log_findings(
    formatted: Mapping[str, Any],
    tokenized: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    generation_config: Any = None,
    max_length: int | None = None,
) -> Report:
    """Log the findings on training data in short, and return them; streamed datasets are left out.

    Args:
        formatted: rows as `format_dataset` gives them, by name.
        tokenized: rows as `tokenize_dataset` gives them, by name.
        tokenizer: theirs.
        generation_config: the model's.
        max_length: that they were cut to.
    """
    facts = TokenFacts(tokenizer, stop_ids(tokenizer, generation_config), max_length)
    scans = {}
    for name, dataset in tokenized.items():
        if not isinstance(dataset, Dataset):
            continue
        scan = scans[name] = _Split(name, facts)
        text = formatted.get(name)
        has_text = isinstance(text, Dataset) and "prompt" in text.column_names
        if has_text:
            for number, row in _numbered(text):
                scan.read_text(number, row)
        for number, row in _numbered(dataset):
            scan.read_tokens(number, row)
            if not has_text:  # it was given tokenized
                ids, ranks = row["completion_ids"], row["ranks"]
                scan.contents.add(number, content_hash(row["prompt_ids"]), [content_hash(c) for c in ids], ranks)
    report = _report(scans, {name: len(tokenized[name]) for name in scans}, [])
    if lines := report.lines():
        logger.warning(
            "The data have findings; `trl-dpo-ext lint` says what to do about them.\n%s",
            "\n".join(f"  {line}" for line in lines),
        )
    return report


def _numbered(dataset: Any) -> Iterable[tuple[int, dict[str, Any]]]:
    return ((row.get("row", index), row) for index, row in enumerate(dataset.with_format(None)))


def _report(scans: Mapping[str, _Split], rows: dict[str, int], findings: list[Finding]) -> Report:
    tables = {name: scan.table() for name, scan in scans.items()}
    for scan in scans.values():
        findings += scan.findings()
    for check in TABLE_CHECKS:
        assert check.run is not None
        for hit in check.run(tables):
            count = len(hit.rows) if hit.count is None else hit.count
            findings.append(Finding(check.id, hit.split, count, hit.rows, hit.note, hit.twins))
    return Report(rows, findings, tables)
