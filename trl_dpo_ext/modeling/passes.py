"""Split the responses of a batch over several forward passes, so that memory doesn't grow with K."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import PromptGroup

PASSES, PASS = "passes", "pass"
"""Keys of a batch: the model inputs of each pass, if it is split; in what `passes_of` returns, the pass's number."""


def split_layout(
    layout: Callable[[Sequence[PromptGroup], int], dict[str, Tensor]],
    groups: Sequence[PromptGroup],
    width: int,
    responses: int,
) -> list[dict[str, Tensor]]:
    """Lay out the batch in passes: the first few responses of each prompt, then the next ones, and so on.

    A prompt that has no more responses is left out of the later passes.

    Args:
        layout: lays out the rows of one pass; see `RowLayout`.
        groups: the batch: B prompts with their responses.
        width: K of the whole batch.
        responses: the most responses of a prompt in one pass.

    Returns:
        What the layout returns, for each pass. `index` holds flat positions in the [B, K, T] of the whole batch, so
        that the log-probs of a pass are 0 at the responses of the others, and the passes add up to the batch.

    >>> from .layout import padded_layout
    >>> passes = split_layout(padded_layout, [PromptGroup([5], [[7, 8], [9], [6]]), PromptGroup([4], [[3]])], 3, 2)
    >>> [one["input_ids"].tolist() for one in passes]
    [[[5, 7, 8], [5, 9, 0], [4, 3, 0]], [[5, 6]]]
    >>> [one["index"].tolist() for one in passes]
    [[[0, 1], [2, -1], [6, -1]], [[4]]]
    """
    longest = max(len(ids) for group in groups for ids in group.completion_ids)
    passes = []
    for first in range(0, width, responses):
        prompts = [b for b, group in enumerate(groups) if len(group.completion_ids) > first]
        chosen = [
            PromptGroup(groups[b].prompt_ids, groups[b].completion_ids[first : first + responses]) for b in prompts
        ]
        k = max(len(group.completion_ids) for group in chosen)
        t = max(len(ids) for group in chosen for ids in group.completion_ids)
        one = layout(chosen, k)
        index = one["index"]
        row = torch.tensor(prompts)[index.clamp(min=0) // (k * t)]
        column = first + index // t % k
        one["index"] = torch.where(index < 0, index, (row * width + column) * longest + index % t)
        passes.append(one)
    return passes


def passes_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one batch per forward pass, each with the rankings of the whole batch; the batch itself if not split."""
    if PASSES not in batch:
        return [dict(batch)]
    whole = {name: value for name, value in batch.items() if name != PASSES}
    return [{**whole, **one, PASS: number} for number, one in enumerate(batch[PASSES])]


def with_passes(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return a split batch with at least `count` passes, the added ones without any response.

    Processes that share sharded weights must run the model equally often.
    """
    passes = batch[PASSES]
    empty = {**passes[-1], "index": torch.full_like(passes[-1]["index"], -1)}
    return {**batch, PASSES: [*passes, *[empty] * (count - len(passes))]}
