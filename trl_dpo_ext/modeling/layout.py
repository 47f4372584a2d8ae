"""Lay out the token ids of a batch in rows: one padded row per response, or shared prompts in packed rows.

Every layout returns the model's input tensors, the labels, and `index`, which maps each scored log-prob to its prompt,
response and token. `gather_token_logps` turns the log-probs of any layout into the same [B, K, T].

This is CPU code for the dataloader. Nothing here is quadratic in the sequence length: `masks.py` builds the attention
masks later, on the model's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that isn't scored, as in transformers."""


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and its K >= 1 responses, already truncated.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        completion_ids: token ids of each of the K responses, at least one each.

    Raises:
        ValueError: the group has no response, an empty prompt, or an empty response.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("A group has an empty prompt, so nothing predicts the first response token. Drop the row.")
        if not self.completion_ids:
            raise ValueError("A group has no response. Drop the row.")
        if empty := [k for k, ids in enumerate(self.completion_ids) if not ids]:
            raise ValueError(f"Responses {empty} of a group are empty. Drop them and their ranks before the layout.")


@dataclass(frozen=True)
class _Sequence:
    """A prefix and its branches in one row. Each branch attends to the prefix and itself, not to other branches.

    A branch starts with the last prompt token, at its original position, so that the branch's outputs are exactly the
    predictions of its response. A response's last token predicts nothing and is left out.
    """

    prefix: list[int]
    branches: list[list[int]]
    labels: list[list[int]]
    slots: list[int]  # b * width + k of each branch

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


def padded_layout(groups: Sequence[PromptGroup], width: int) -> dict[str, Tensor]:
    """Lay out one row per response: the prompt, the response, right padding, as in TRL.

    Args:
        groups: the batch: B prompts with their responses.
        width: K of the result, at least the largest number of responses.

    Returns:
        Tensors with R rows (one per response, in order) and L columns. T is the longest completion of the batch.
        `input_ids`, `attention_mask` and `labels` are [R, L]; `labels` are unshifted, -100 for unscored positions.
        `index` [R, L - 1] is the flat position (b * width + k) * T + t of each next token's log-prob, -1 if unscored.

    Raises:
        ValueError: there are no groups, or one has more than `width` responses.

    >>> batch = padded_layout([PromptGroup([5, 6], [[7, 8], [9]])], width=2)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 7, 8], [5, 6, 9, 0]], [[-100, -100, 7, 8], [-100, -100, 9, -100]])
    >>> batch["index"].tolist()
    [[-1, 0, 1], [-1, 2, -1]]
    """
    longest = _check(groups, width)
    input_ids, labels, index = [], [], []
    for b, group in enumerate(groups):
        for k, completion in enumerate(group.completion_ids):
            prompt = group.prompt_ids
            first = (b * width + k) * longest
            input_ids.append(prompt + completion)
            labels.append([IGNORED] * len(prompt) + completion)
            index.append([-1] * (len(prompt) - 1) + list(range(first, first + len(completion))))
    return {
        "input_ids": _pad(input_ids, 0),
        "attention_mask": _pad([[1] * len(row) for row in input_ids], 0),
        "labels": _pad(labels, IGNORED),
        "index": _pad(index, -1),
    }


def shared_layout(
    groups: Sequence[PromptGroup],
    width: int,
    max_tokens: int | None = None,
    *,
    share: bool = True,
    last_tokens: bool = False,
) -> dict[str, Tensor]:
    """Lay out each prompt once, followed by its responses, and pack several groups into a row.

    A group becomes `prompt[:-1] p y1[:-1] p y2[:-1] ...`: the prompt without its last token p, then for each response
    p and the response without its last token. The positions of every response continue from the prompt's. Groups are
    packed by first-fit decreasing and never split. A group over the budget gets a row of its own.

    Args:
        groups: the batch: B prompts with their responses.
        width: K of the result, at least the largest number of responses.
        max_tokens: token budget of a row. None: the longest group, so that packing only fills padding. 0: no packing,
            one row per group.
        share: False gives each response its own prompt, as a plain causal sequence, and only packs.
        last_tokens: True keeps the last token of each response. Only a loss that counts all tokens needs it (the
            load-balancing loss of mixture-of-experts models).

    Returns:
        int64 tensors [R, L]. T is the longest completion of the batch.
        `input_ids`, `position_ids`.
        `segment_ids`: number of the prefix or response that the token belongs to; 0 = padding.
        `prefix_ids`: number of the prefix that the token attends to in addition to its own segment.
        `token_mask`: 1 for each real token, counted once; 0 for padding and repeated prompt tokens.
        `shift_labels`: the token that the position predicts, -100 if unscored.
        `index`: flat position (b * width + k) * T + t of the log-prob at the position, -1 if unscored.

    Raises:
        ValueError: there are no groups, or one has more than `width` responses.

    >>> batch = shared_layout([PromptGroup([4, 5, 6], [[7, 8], [9]])], width=2)
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
    ([[4, 5, 6, 7, 6]], [[0, 1, 2, 3, 2]])
    >>> batch["shift_labels"].tolist(), batch["index"].tolist()
    ([[-100, -100, 7, 8, 9]], [[-1, -1, 0, 1, 2]])
    >>> batch["segment_ids"].tolist(), batch["prefix_ids"].tolist()
    ([[1, 1, 2, 2, 3]], [[1, 1, 1, 1, 1]])
    """
    longest = _check(groups, width)
    sequences = []
    for b, group in enumerate(groups):
        *prefix, last = group.prompt_ids
        branches = [[last, *(ids if last_tokens else ids[:-1])] for ids in group.completion_ids]
        labels = [[*ids, IGNORED] if last_tokens else ids for ids in group.completion_ids]
        slots = [b * width + k for k in range(len(branches))]
        if share:
            sequences.append(_Sequence(prefix, branches, labels, slots))
        else:
            sequences += [_Sequence(prefix, [x], [y], [z]) for x, y, z in zip(branches, labels, slots, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    budget = max(lengths) if max_tokens is None else max_tokens
    rows = [_build_row([sequences[i] for i in members], longest) for members in _pack(lengths, budget)]
    padding = {"shift_labels": IGNORED, "index": -1}
    return {name: _pad([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]}


def gather_token_logps(log_probs: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Gather the log-probs of any layout by prompt, response and token.

    Args:
        log_probs: [R, >= S] float, one value per position, scored or not. Only the last S columns are read, because
            prompt-learning adapters prepend virtual tokens.
        index: [R, S] int64, flat position in the result, -1 = none; from the layout.
        shape: (B, K, T) of the result.

    Returns:
        [B, K, T] float32, 0 past the end of a response; differentiable.

    >>> logps = gather_token_logps(torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]]),
    ...                            torch.tensor([[-1, 0, 1], [-1, 2, -1]]), (1, 2, 2))
    >>> logps.tolist()
    [[[-1.0, -2.0], [-3.0, 0.0]]]
    """
    size = torch.Size(shape).numel()
    values = log_probs[:, -index.shape[1] :].float().flatten()
    # Index -1 scatters into one extra slot, which is dropped. Boolean indexing would synchronize with the device.
    return values.new_zeros(size + 1).scatter(0, index.flatten() % (size + 1), values)[:size].view(*shape)


def _check(groups: Sequence[PromptGroup], width: int) -> int:
    """Return T, the longest completion of the batch."""
    if not groups:
        raise ValueError("The batch is empty; it needs at least one group.")
    if (most := max(len(group.completion_ids) for group in groups)) > width:
        raise ValueError(f"A group has {most} responses, but width is {width}. Set width to at least {most}.")
    return max(len(ids) for group in groups for ids in group.completion_ids)


def _pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack by first-fit decreasing; return the members of each row, in input order within a row.

    >>> _pack([3, 5, 2, 9], budget=8)
    [[3], [0, 1], [2]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if lengths[i] <= free), None)
        if row is None:
            rows.append([i])
            room.append(budget - lengths[i])
        else:
            rows[row].append(i)
            room[row] -= lengths[i]
    return [sorted(members) for members in rows]


def _build_row(sequences: Sequence[_Sequence], longest: int) -> dict[str, list[int]]:
    row: dict[str, list[int]] = {
        name: []
        for name in (
            "input_ids",
            "position_ids",
            "segment_ids",
            "prefix_ids",
            "token_mask",
            "shift_labels",
            "index",
        )
    }
    segment = 0
    for sequence in sequences:
        start = len(sequence.prefix)
        segment += 1
        prefix = segment
        row["input_ids"] += sequence.prefix
        row["position_ids"] += range(start)
        row["segment_ids"] += [prefix] * start
        row["token_mask"] += [1] * start
        row["shift_labels"] += [IGNORED] * start
        row["index"] += [-1] * start
        for branch, labels, slot in zip(sequence.branches, sequence.labels, sequence.slots, strict=True):
            segment += 1
            first = segment == prefix + 1
            row["input_ids"] += branch
            row["position_ids"] += range(start, start + len(branch))
            row["segment_ids"] += [segment] * len(branch)
            row["token_mask"] += [int(first)] + [1] * (len(branch) - 1)
            row["shift_labels"] += labels
            row["index"] += [-1 if y == IGNORED else slot * longest + t for t, y in enumerate(labels)]
        row["prefix_ids"] += [prefix] * len(sequence)
    return row


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded
