"""What is looked for across rows and splits: each check is a function over the columns of hashes and lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from .lengths import LengthBias, ordinary_range
from .row_checks import Check, check
from .row_store import Groups, mix


@dataclass(frozen=True)
class Table:
    """One split.

    Attributes:
        contents: hashes of prompts and responses, of the rows that can be read.
        lengths: their lengths; where they are tokens, of the rows that have some.
        unit: of the lengths, "characters" or "tokens".
        max_length: tokens of prompt and completion together; None for no limit, and where the unit is characters.
    """

    contents: Groups
    lengths: Groups
    unit: str = "characters"
    max_length: int | None = None


@dataclass(frozen=True)
class Hit:
    """What a check found in one split.

    Attributes:
        split: its name.
        rows: row numbers in the user's dataset; empty where the split as a whole is meant.
        note: what was found.
        twins: for each row, the (split, row) it repeats or contradicts, or nothing.
        count: how many rows it concerns, where `rows` doesn't say so.
    """

    split: str
    rows: list[int]
    note: str
    twins: list[tuple[str, int]] = field(default_factory=list)
    count: int | None = None


Tables = Mapping[str, Table]
TABLE_CHECKS: list[Check] = []  # f(tables) -> hits


def is_training(split: str) -> bool:
    """Whether a split is for training, by its name: train, train_prefs, training, ..."""
    return split.startswith("train")


def _contents(tables: Tables) -> Iterator[tuple[str, Groups]]:
    return ((name, table.contents) for name, table in tables.items() if len(table.contents))


def _limited(tables: Tables) -> Iterator[tuple[str, Groups, int]]:
    for name, table in tables.items():
        if table.max_length is not None and len(table.lengths):
            yield name, table.lengths, table.max_length


@check(TABLE_CHECKS, "duplicate-row", "warning", "Remove the copies; a row that occurs twice weighs twice.")
def _duplicate_row(tables: Tables) -> Iterator[Hit]:
    for name, groups in _contents(tables):
        # A sum, because the order of the responses doesn't matter where each keeps its rank.
        answers = groups.totals(mix(mix(groups.responses) + groups.ranks.astype(np.uint64)))
        _, first, inverse = np.unique(mix(groups.prompts) + answers, return_index=True, return_inverse=True)
        originals = first[inverse]
        copies = np.flatnonzero(originals != np.arange(len(groups)))
        if len(copies):
            twins = [(name, row) for row in groups.rows[originals[copies]].tolist()]
            note = "the same prompt, responses and ranks as an earlier row"
            yield Hit(name, groups.rows[copies].tolist(), note, twins)


@check(
    TABLE_CHECKS,
    "prompt-in-train-and-test",
    "error",
    "Remove the prompts from one of the two, or the evaluation measures what was learned by heart.",
)
def _prompt_in_train_and_test(tables: Tables) -> Iterator[Hit]:
    splits = list(_contents(tables))
    training = [(n, trained, *np.unique(trained.prompts, return_index=True)) for n, trained in splits if is_training(n)]
    for name, groups in splits:
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
            yield Hit(name, groups.rows[rows].tolist(), f"the prompt is in {where} too", [twins[i] for i in rows])


@check(
    TABLE_CHECKS,
    "contradictory-labels",
    "warning",
    "Decide for one order, or remove both rows; a share of such noise that stays calls for a loss like robust or cdpo.",
)
def _contradictory_labels(tables: Tables) -> Iterator[Hit]:
    parts = list(_contents(tables))
    if not parts:
        return
    names = [name for name, _ in parts]
    splits = np.concatenate([np.full(len(groups), i) for i, (_, groups) in enumerate(parts)])
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
        found = sorted(o for o in contradicted if splits[o] == i)
        if found:
            twins = [(names[splits[contradicted[o]]], int(rows[contradicted[o]])) for o in found]
            yield Hit(
                name, rows[found].tolist(), "another row has a pair of these responses the other way round", twins
            )


@check(
    TABLE_CHECKS,
    "prompt-too-long",
    "warning",
    "Raise max_length, or shorten the prompts: rows without room for a response are dropped in training.",
)
def _prompt_too_long(tables: Tables) -> Iterator[Hit]:
    for name, groups, limit in _limited(tables):
        if (full := groups.prompts >= limit).any():
            note = f"{full.sum():,} of {len(groups):,} prompts fill max_length={limit}; the longest has "
            yield Hit(name, groups.rows[full].tolist(), f"{note}{groups.prompts.max():,} tokens")


@check(
    TABLE_CHECKS,
    "truncated-response",
    "warning",
    "Raise max_length, or leave out what is too long: a response cut off has no EOS, and its label was given for the "
    "whole text.",
)
def _truncated_response(tables: Tables) -> Iterator[Hit]:
    for name, groups, limit in _limited(tables):
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
            yield Hit(name, groups.rows[cut].tolist(), note)


@check(
    TABLE_CHECKS,
    "length-bias",
    "warning",
    "The model may learn the length instead of the quality: balance the data, or take a loss that counts tokens less "
    "(ld_alpha, r_dpo, simpo, ln_dpo).",
)
def _length_bias(tables: Tables) -> Iterator[Hit]:
    for name, table in tables.items():
        bias = LengthBias.of(table.lengths)
        if bias is not None and bias.notable:
            yield Hit(name, [], bias.sentence(table.unit), count=bias.prompts)


@check(
    TABLE_CHECKS,
    "extreme-length",
    "info",
    "Look at the rows: pasted documents, lone words and broken exports are found this way.",
)
def _extreme_length(tables: Tables) -> Iterator[Hit]:
    for name, table in tables.items():
        groups = table.lengths
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
                    f"{outside.sum():,} {what} of {values[outside].min():,} to {values[outside].max():,} {table.unit}, "
                    f"where {math.ceil(low):,} to {math.floor(high):,} is ordinary"
                )
        if notes:
            yield Hit(name, groups.rows[extreme].tolist(), "; ".join(notes))
