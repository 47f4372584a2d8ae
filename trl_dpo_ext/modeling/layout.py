"""How the token ids of a batch are laid out in rows: one row per response, or each prompt once and nothing padded.

Every layout gives the tensors the model is called with, its labels, and `index`, which says where each scored
log-prob belongs; `gather_token_logps` brings all of them to the same [B, K, T]. Plain CPU code for the dataloader:
nothing here is quadratic in the length, and the attention masks are built later, on the model's device (`masks.py`).
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
        prompt_ids: at least one token.
        completion_ids: K lists of at least one token each.

    Raises:
        ValueError: no response, or an empty prompt or response.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("A group has an empty prompt; its first response token would have nothing to predict it.")
        if not self.completion_ids:
            raise ValueError("A group has no response.")
        if empty := [k for k, ids in enumerate(self.completion_ids) if not ids]:
            raise ValueError(f"Responses {empty} of a group are empty; drop them, and their ranks, before the layout.")


@dataclass(frozen=True)
class _Sequence:
    """Token ids in one row: a prefix, and branches that see the prefix and themselves, but not each other.

    A branch begins with the last prompt token, at the position it has in the prompt, so that the outputs of a branch
    are exactly the predictions of its response. The last token of a response predicts nothing and is left out.
    """

    prefix: list[int]
    branches: list[list[int]]
    labels: list[list[int]]
    slots: list[int]  # b * width + k of each branch

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


def padded_layout(groups: Sequence[PromptGroup], width: int) -> dict[str, Tensor]:
    """One row per response, prompt first, padded at the right: what TRL does.

    Args:
        groups: the batch, B prompts with their responses.
        width: K of the result, at least the largest number of responses.

    Returns:
        Tensors of R rows (one per response, in order) of L columns, with T = longest completion of the batch:
        `input_ids`, `attention_mask`, `labels` [R, L], unshifted, -100 where nothing is scored, and `index`
        [R, L - 1]: flat position (b * width + k) * T + t of the log-prob of each next token, -1 where not scored.

    Raises:
        ValueError: no groups, or one with more than `width` responses.

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
    """Each prompt once with its responses behind it, and several groups packed in a row.

    A group is laid out as prompt without its last token, then for each response the last prompt token and the
    response without its own last token: `prompt[:-1] p y1[:-1] p y2[:-1] ...`. Positions go on from the prompt's in
    every response. Groups are packed by first-fit-decreasing and never split; one over the budget gets its own row.

    Args:
        groups: the batch, B prompts with their responses.
        width: K of the result, at least the largest number of responses.
        max_tokens: budget of a row; None = as long as the longest group, so that packing only fills what would be
            padding; 0 = no packing, one row per group.
        share: False lays every response out with its own prompt, as plain causal sequences, and only packs.
        last_tokens: True keeps the last token of each response, which only a count of all tokens (the load-balancing
            loss of mixture-of-experts models) needs.

    Returns:
        Tensors of R rows of L columns, with T = longest completion of the batch: `input_ids`; `position_ids`;
        `segment_ids`, number of the prefix or response a token belongs to, 0 = padding; `prefix_ids`, number of the
        prefix it may see besides its own segment; `token_mask`, 1 for each real token once (0 = padding or a repeated
        prompt token); `shift_labels`, the token each position predicts, -100 where not scored; `index`: flat position
        (b * width + k) * T + t of the log-prob at each position, -1 where not scored. All int64 [R, L].

    Raises:
        ValueError: no groups, or one with more than `width` responses.

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
    rows = [_row([sequences[i] for i in members], longest) for members in _pack(lengths, budget)]
    padding = {"shift_labels": IGNORED, "index": -1}
    return {name: _pad([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]}


def gather_token_logps(log_probs: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring the log-probs of any layout to their prompt, response and token.

    Args:
        log_probs: [R, >= S] one value per scored or unscored position, any float dtype. Only the last S columns are
            read: prompt-learning adapters put virtual tokens in front.
        index: [R, S] int64, flat position in the result, -1 = nowhere, as the layouts give it.
        shape: (B, K, T) of the result.

    Returns:
        [B, K, T] float32, 0 where no log-prob belongs, differentiable.

    >>> logps = gather_token_logps(torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]]),
    ...                            torch.tensor([[-1, 0, 1], [-1, 2, -1]]), (1, 2, 2))
    >>> logps.tolist()
    [[[-1.0, -2.0], [-3.0, 0.0]]]
    """
    size = torch.Size(shape).numel()
    values = log_probs[:, -index.shape[1] :].float().flatten()
    # -1 goes to one slot past the end, which is cut off: no boolean indexing, so no wait for the device.
    return values.new_zeros(size + 1).scatter(0, index.flatten() % (size + 1), values)[:size].view(*shape)


def _check(groups: Sequence[PromptGroup], width: int) -> int:
    """Return T, the longest completion of the batch."""
    if not groups:
        raise ValueError("A batch needs at least one group.")
    if (most := max(len(group.completion_ids) for group in groups)) > width:
        raise ValueError(f"A group has {most} responses, but width is {width}; width must be at least {most}.")
    return max(len(ids) for group in groups for ids in group.completion_ids)


def _pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit-decreasing: return the members of each row, in input order within a row.

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


def _row(sequences: Sequence[_Sequence], longest: int) -> dict[str, list[int]]:
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
