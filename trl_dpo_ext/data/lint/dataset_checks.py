"""Checks across rows and splits: each is a function of the hashes and lengths of all splits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from .check import Check, check
from .lengths import LengthBias, ordinary_range
from .row_store import RowStore, mix


@dataclass(frozen=True)
class SplitContents:
    """What the checks read of one split.

    Attributes:
        contents: hashes of prompts and responses, for the rows that can be read.
        lengths: lengths of prompts and responses; in tokens, only for the rows that can be tokenized.
        unit: the unit of the lengths, "characters" or "tokens".
        max_length: tokens of prompt and completion together; None without a limit, and where the unit is characters.
    """

    contents: RowStore
    lengths: RowStore
    unit: str = "characters"
    max_length: int | None = None


@dataclass(frozen=True)
class SplitFinding:
    """What a check found in one split.

    Attributes:
        split: the split's name.
        rows: row numbers in the user's dataset; empty if the finding is about the split as a whole.
        note: what was found.
        twins: for each of `rows`, the (split, row) that it repeats or contradicts; may be empty.
        count: how many rows it concerns; None if `rows` lists them.
    """

    split: str
    rows: list[int]
    note: str
    twins: list[tuple[str, int]] = field(default_factory=list)
    count: int | None = None


SplitsByName = Mapping[str, SplitContents]
DATASET_CHECKS: list[Check] = []  # each is f(splits) -> findings


def is_training(split: str) -> bool:
    """Return whether a split's name says that it is for training: train, train_prefs, training, ..."""
    return split.startswith("train")


def _contents(splits: SplitsByName) -> Iterator[tuple[str, RowStore]]:
    return ((name, split.contents) for name, split in splits.items() if len(split.contents))


def _limited(splits: SplitsByName) -> Iterator[tuple[str, RowStore, int]]:
    for name, split in splits.items():
        if split.max_length is not None and len(split.lengths):
            yield name, split.lengths, split.max_length


@check(DATASET_CHECKS, "duplicate-row", "warning", "Remove the copies; a row that occurs twice counts twice.")
def _duplicate_row(splits: SplitsByName) -> Iterator[SplitFinding]:
    for name, groups in _contents(splits):
        # A sum, because the order of the responses doesn't matter where each keeps its rank.
        answers = groups.totals(mix(mix(groups.responses) + groups.ranks.astype(np.uint64)))
        _, first, inverse = np.unique(mix(groups.prompts) + answers, return_index=True, return_inverse=True)
        originals = first[inverse]
        copies = np.flatnonzero(originals != np.arange(len(groups)))
        if len(copies):
            twins = [(name, row) for row in groups.rows[originals[copies]].tolist()]
            note = "the same prompt, responses and ranks as an earlier row"
            yield SplitFinding(name, groups.rows[copies].tolist(), note, twins)


@check(
    DATASET_CHECKS,
    "prompt-in-train-and-test",
    "error",
    "Remove the prompts from one of the two; otherwise the evaluation measures memorized prompts.",
)
def _prompt_in_train_and_test(splits: SplitsByName) -> Iterator[SplitFinding]:
    parts = list(_contents(splits))
    training = [(n, trained, *np.unique(trained.prompts, return_index=True)) for n, trained in parts if is_training(n)]
    for name, groups in parts:
        if is_training(name):
            continue
        twins: dict[int, tuple[str, int]] = {}
        for other, trained, known, first in training:
            place = np.searchsorted(known, groups.prompts).clip(max=len(known) - 1)
            for index in np.flatnonzero(known[place] == groups.prompts).tolist():
                twins.setdefault(index, (other, int(trained.rows[first[place[index]]])))
        if twins:
            rows = sorted(twins)
            where = " and ".join(sorted({split for split, _ in twins.values()}))
            yield SplitFinding(
                name, groups.rows[rows].tolist(), f"the prompt is in {where} too", [twins[i] for i in rows]
            )


@check(
    DATASET_CHECKS,
    "contradictory-labels",
    "warning",
    "Keep one order, or remove both rows; if such noise must stay, use a loss like robust or cdpo.",
)
def _contradictory_labels(splits: SplitsByName) -> Iterator[SplitFinding]:
    parts = list(_contents(splits))
    if not parts:
        return
    names = [name for name, _ in parts]
    part_of = np.concatenate([np.full(len(groups), i) for i, (_, groups) in enumerate(parts)])
    rows = np.concatenate([groups.rows for _, groups in parts])
    prompts = np.concatenate([groups.prompts for _, groups in parts])
    _, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    repeated = counts[inverse] > 1  # others have no row that could contradict them

    keys, owners, directions = [], [], []
    offset = 0
    for _, groups in parts:
        candidates = np.flatnonzero(repeated[offset : offset + len(groups)])
        for chosen, responses in groups.by_width(candidates):
            hashes, ranks = groups.responses[responses], groups.ranks[responses]
            for a in range(responses.shape[1]):
                for b in range(a + 1, responses.shape[1]):
                    ordered = ranks[:, a] != ranks[:, b]
                    x, y = hashes[ordered, a], hashes[ordered, b]
                    keys.append(mix(groups.prompts[chosen[ordered]]) + mix(x) + mix(y))
                    owners.append(chosen[ordered] + offset)
                    directions.append((ranks[ordered, a] < ranks[ordered, b]) == (x < y))
        offset += len(groups)
    if not keys:
        return
    owner, direction = np.concatenate(owners), np.concatenate(directions)
    _, pair = np.unique(np.concatenate(keys), return_inverse=True)
    # The first row that has a pair in one order, and the first that has it in the other.
    firsts = np.full((2, pair.max(initial=-1) + 1), len(rows))
    np.minimum.at(firsts, (direction.astype(int), pair), owner)
    opposite = firsts[1 - direction.astype(int), pair]
    contradicted = {int(o): int(t) for o, t in zip(owner[::-1], opposite[::-1], strict=True) if t < len(rows)}
    for i, name in enumerate(names):
        found = sorted(o for o in contradicted if part_of[o] == i)
        if found:
            twins = [(names[part_of[contradicted[o]]], int(rows[contradicted[o]])) for o in found]
            yield SplitFinding(
                name, rows[found].tolist(), "another row has a pair of these responses the other way round", twins
            )


@check(
    DATASET_CHECKS,
    "prompt-too-long",
    "warning",
    "Raise max_length, or shorten the prompts: training drops rows without room for a response.",
)
def _prompt_too_long(splits: SplitsByName) -> Iterator[SplitFinding]:
    for name, groups, limit in _limited(splits):
        if (full := groups.prompts >= limit).any():
            note = f"{full.sum():,} of {len(groups):,} prompts fill max_length={limit}; the longest has "
            yield SplitFinding(name, groups.rows[full].tolist(), f"{note}{groups.prompts.max():,} tokens")


@check(
    DATASET_CHECKS,
    "truncated-response",
    "warning",
    "Raise max_length, or leave out the rows: a truncated response has no EOS, and its label is for the whole text.",
)
def _truncated_response(splits: SplitsByName) -> Iterator[SplitFinding]:
    for name, groups, limit in _limited(splits):
        room = limit - groups.prompts[groups.owners]
        fits = room > 0  # the others are dropped with their prompt
        lost = np.where(fits, (groups.responses - room).clip(min=0), 0)
        if lost.any():
            cut = groups.totals((lost > 0).astype(np.int64)) > 0
            tokens = groups.responses[fits].sum()
            note = (
                f"{(lost > 0).sum():,} of {fits.sum():,} responses lose {lost.sum():,} of {tokens:,} tokens "
                f"({lost.sum() / tokens:.1%}) to max_length={limit}"
            )
            yield SplitFinding(name, groups.rows[cut].tolist(), note)


@check(
    DATASET_CHECKS,
    "length-bias",
    "warning",
    "The model may learn length instead of quality: balance the data, or use a loss that depends less on length "
    "(ld_alpha, r_dpo, simpo, ln_dpo).",
)
def _length_bias(splits: SplitsByName) -> Iterator[SplitFinding]:
    for name, split in splits.items():
        bias = LengthBias.of(split.lengths)
        if bias is not None and bias.notable:
            yield SplitFinding(name, [], bias.sentence(split.unit), count=bias.prompts)


@check(
    DATASET_CHECKS,
    "extreme-length",
    "info",
    "Look at these rows: they may be pasted documents, lone words or broken exports.",
)
def _extreme_length(splits: SplitsByName) -> Iterator[SplitFinding]:
    for name, split in splits.items():
        groups = split.lengths
        if not len(groups):
            continue
        extreme, notes = np.zeros(len(groups), dtype=bool), []
        for what, values, owners in (
            ("prompts", groups.prompts, np.arange(len(groups))),
            ("responses", groups.responses, groups.owners),
        ):
            low, high = ordinary_range(values)
            outside = (values < low) | (values > high)
            if outside.any():
                extreme[owners[outside]] = True
                notes.append(
                    f"{outside.sum():,} {what} of {values[outside].min():,} to {values[outside].max():,} {split.unit}, "
                    f"where {math.ceil(low):,} to {math.floor(high):,} is ordinary"
                )
        if notes:
            yield SplitFinding(name, groups.rows[extreme].tolist(), "; ".join(notes))
