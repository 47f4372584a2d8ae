"""Read datasets row by row, run the checks, and report."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from ..convert import check_converter, convert_row
from ..converter_registry import Converter, get_converter
from ..data_error import DataError, FaultReason
from ..format import reading_of
from ..mixture import separate_forms
from ..padded_columns import padded_columns
from ..reads import EVERY_ROW
from ..rendering.left_out_text import left_out
from ..row_reading.form_selection import Reading
from ..row_reading.ranked_row import to_ranked
from ..tokenize import tokenize_row
from .check import Check
from .dataset_checks import DATASET_CHECKS, SplitContents
from .findings_report import Finding, Report
from .row_store import RowStore, content_hash
from .text_checks import TEXT_CHECKS, text_of
from .token_checks import TOKEN_CHECKS, TokenContext, accepted_end_ids

logger = logging.getLogger(__name__)


class _SplitScan:
    """One split while it is read: its findings so far, and the hashes and lengths for the checks across rows."""

    def __init__(
        self,
        name: str,
        context: TokenContext | None,
        converter: Converter | None = None,
        padded: Collection[str] | None = None,
    ) -> None:
        self.name, self.context, self.converter, self.padded = name, context, converter, padded
        self.reading: Reading | None = None  # of a converter's rows, each row's columns tell
        self.rows: dict[str, list[int]] = {}
        self.notes: dict[str, str] = {}
        self.contents, self.lengths = RowStore("Q"), RowStore("q")
        self._conversational: bool | None = None

    def note_finding(self, id: str, row: int, note: str) -> None:
        """Note a finding; the first row's note stands for all."""
        self.notes.setdefault(id, f"row {row}: {note}")
        self.rows.setdefault(id, []).append(row)

    def read(self, number: int, row: dict[str, Any]) -> None:
        """Check a row of any accepted form, or of the converter's form where there is one."""
        try:
            if self.converter is not None:
                row = convert_row(row, number, self.converter, self.name)
            ranked = to_ranked(
                row,
                index=number,
                name=self.name,
                reads=EVERY_ROW,
                reading=self.reading,
                conversational=self._conversational,
                padded=self.padded,
            )
        except DataError as error:
            # The message begins with split and row, as the finding does.
            note = str(error).removeprefix(f"{self.name} dataset, row {number}").lstrip(",: ")
            self.note_finding(error.reason.check_id, number, note.rstrip("."))
            return
        self._conversational = isinstance(ranked["prompt"], list)
        if max(ranked["ranks"]) == 0 and len(ranked["ranks"]) > 1:
            self.note_finding("all-tied", number, f"all {len(ranked['ranks'])} responses are equally good")
        self.read_text(number, ranked)
        if self.context is not None:
            try:
                tokens = tokenize_row(ranked, self.context.tokenizer)
                missing = left_out(ranked, tokens, self.context.tokenizer)
            except Exception as error:  # a chat template is a program and may fail in any way
                note = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
                self.note_finding(FaultReason.CANNOT_TOKENIZE.check_id, number, note)
            else:
                if missing is not None:
                    note = f"the chat template leaves out {missing}"
                    self.note_finding(FaultReason.TEXT_LEFT_OUT.check_id, number, note)
                self.read_tokens(number, {**tokens, "ranks": _shown_ranks(ranked)})

    def read_text(self, number: int, ranked: dict[str, Any]) -> None:
        """Check the text of a ranked row."""
        self._run(TEXT_CHECKS, number, ranked)
        prompt, responses, ranks = ranked["prompt"], ranked["completions"], _shown_ranks(ranked)
        self.contents.add(number, content_hash(prompt), [content_hash(r) for r in responses], ranks)
        if self.context is None:
            self.lengths.add(number, len(text_of(prompt)), [len(text_of(r)) for r in responses], ranks)

    def read_tokens(self, number: int, tokens: dict[str, Any]) -> None:
        """Check the tokens of a row."""
        self._run(TOKEN_CHECKS, number, tokens, self.context)
        self.lengths.add(number, len(tokens["prompt_ids"]), [len(c) for c in tokens["completion_ids"]], tokens["ranks"])

    def _run(self, checks: Sequence[Check], number: int, *arguments: Any) -> None:
        for check in checks:
            assert check.run is not None
            if note := check.run(*arguments):
                self.note_finding(check.id, number, note)

    def split_contents(self) -> SplitContents:
        if self.context is None:
            return SplitContents(self.contents, self.lengths)
        return SplitContents(self.contents, self.lengths, "tokens", self.context.max_length)

    @property
    def form(self) -> str | None:
        """How the rows are read, in words; None where nothing was read as text."""
        if self.converter is not None:
            return f"{self.converter.name} (a converter)"
        return None if self.reading is None else self.reading.title

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
    """Look for faults in a preference dataset that training would not report. Nothing is changed.

    Args:
        splits: datasets of any accepted form, by name. Names that begin with "train" are for training.
        tokenizer: also check tokens (templates, BOS, EOS, boundaries), and count lengths in tokens.
        generation_config: the model's; a response may end with its EOS ids too.
        max_length: tokens of prompt and completion together; also report what is cut off. Needs the tokenizer.
        converter: the name of the converter to an accepted form, like a recipe's `dataset_converter`.
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
    context = (
        None
        if tokenizer is None
        else TokenContext(tokenizer, accepted_end_ids(tokenizer, generation_config), max_length)
    )
    found = None if converter is None else get_converter(converter)
    scans, findings = {}, []
    for name, dataset in splits.items():
        scan = scans[name] = _SplitScan(name, context, found, padded_columns(dataset) if found is None else None)
        try:
            if not len(dataset):
                raise DataError(f"{name} dataset: it has no rows.", FaultReason.NO_ROWS)
            if found is None:
                dataset = separate_forms(dataset, name=name)
                scan.reading = reading_of(dataset.with_format(None), name)
            else:
                check_converter(found, dataset.column_names, name)
        except DataError as error:
            note = str(error).removeprefix(f"{name} dataset: ").rstrip(".")
            findings.append(Finding(error.reason.check_id, name, len(dataset), [], note))
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
    """Log the findings on training data, one line each, and return them; streamed datasets are left out.

    Args:
        formatted: rows as `format_dataset` returns them, by name.
        tokenized: rows as `tokenize_dataset` returns them, by name.
        tokenizer: the tokenizer of those rows.
        generation_config: the model's.
        max_length: the length to which they were cut.
    """
    context = TokenContext(tokenizer, accepted_end_ids(tokenizer, generation_config), max_length)
    scans = {}
    for name, dataset in tokenized.items():
        if not isinstance(dataset, Dataset):
            continue
        scan = scans[name] = _SplitScan(name, context)
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


def _shown_ranks(ranked: dict[str, Any]) -> list[int]:
    """Return the ranks; a single response has the one that its label gives, so that thumbs up and down differ."""
    labels = ranked.get("labels") or [None]
    return [0 if labels[0] else 1] if len(ranked["ranks"]) == 1 and labels[0] is not None else ranked["ranks"]


def _numbered(dataset: Any) -> Iterable[tuple[int, dict[str, Any]]]:
    return ((row.get("row", index), row) for index, row in enumerate(dataset.with_format(None)))


def _report(scans: Mapping[str, _SplitScan], rows: dict[str, int], findings: list[Finding]) -> Report:
    contents = {name: scan.split_contents() for name, scan in scans.items()}
    for scan in scans.values():
        findings += scan.findings()
    for check in DATASET_CHECKS:
        assert check.run is not None
        for found in check.run(contents):
            count = len(found.rows) if found.count is None else found.count
            findings.append(Finding(check.id, found.split, count, found.rows, found.note, found.twins))
    forms = {name: scan.form for name, scan in scans.items() if scan.form}
    return Report(rows, findings, contents, forms)
