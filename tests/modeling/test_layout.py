"""Compare every token, label and position of every layout with the definition."""

from __future__ import annotations

import random

import pytest
import torch

from tests.modeling.tiny import ragged_groups, shape_of
from trl_dpo_ext.modeling.layout import PromptGroup, gather_token_logps, padded_layout, shared_layout

GROUPS = ragged_groups()
B, K, T = shape_of(GROUPS)


def expected_tokens() -> torch.Tensor:
    """Return the response tokens, [B, K, T], 0 where there is none."""
    out = torch.zeros(B, K, T)
    for b, group in enumerate(GROUPS):
        for k, ids in enumerate(group.completion_ids):
            out[b, k, : len(ids)] = torch.tensor(ids)
    return out


LAYOUTS = {
    "padded": lambda: padded_layout(GROUPS, K),
    "shared": lambda: shared_layout(GROUPS, K),
    "shared, unpacked": lambda: shared_layout(GROUPS, K, 0),
    "shared, budget": lambda: shared_layout(GROUPS, K, 30),
    "shared, last tokens": lambda: shared_layout(GROUPS, K, 30, last_tokens=True),
    "packed": lambda: shared_layout(GROUPS, K, share=False),
    "packed, last tokens": lambda: shared_layout(GROUPS, K, share=False, last_tokens=True),
}


def targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the token that each scored position predicts. TRL shifts `labels` and uses `shift_labels` unchanged."""
    return batch["shift_labels"] if "shift_labels" in batch else batch["labels"][:, 1:]


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_response_token_is_scored_once_at_its_place(name: str) -> None:
    batch = LAYOUTS[name]()
    predicted, index = targets(batch), batch["index"]
    assert torch.equal(predicted != -100, index >= 0)
    assert index[index >= 0].unique().numel() == (index >= 0).sum() == (expected_tokens() > 0).sum()
    assert torch.equal(gather_token_logps(predicted.float(), index, (B, K, T)), expected_tokens())


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "padded"])
def test_the_tokens_a_position_sees_are_its_prompt_and_its_response_so_far(name: str) -> None:
    batch = LAYOUTS[name]()
    ids, positions = batch["input_ids"], batch["position_ids"]
    segments, prefixes = batch["segment_ids"], batch["prefix_ids"]
    for row, column in (batch["index"] >= 0).nonzero().tolist():
        b, k, t = (int(x) for x in torch.unravel_index(batch["index"][row, column], (B, K, T)))
        seen = [
            i
            for i in range(column + 1)
            if segments[row, i] in (segments[row, column], prefixes[row, column])  # the rule, taken literally
        ]
        assert ids[row, seen].tolist() == GROUPS[b].prompt_ids + GROUPS[b].completion_ids[k][:t]
        assert positions[row, seen].tolist() == list(range(len(GROUPS[b].prompt_ids) + t))


def test_padding_sees_and_is_seen_by_no_real_token() -> None:
    batch = shared_layout([PromptGroup([3] * 9, [[4, 5]]), PromptGroup([6], [[7]])], 1, 0)
    assert batch["segment_ids"][1].tolist() == [2] + [0] * 9  # a prompt of one token has no prefix of its own
    assert batch["prefix_ids"][1].tolist() == [1] + [0] * 9
    assert batch["token_mask"][1].tolist() == [1] + [0] * 9


def test_rows_are_as_long_as_the_longest_and_no_token_is_laid_out_twice_but_the_last_of_the_prompt() -> None:
    batch = shared_layout(GROUPS, K)
    sizes = [len(g.prompt_ids) - 1 + sum(map(len, g.completion_ids)) for g in GROUPS]
    assert (batch["segment_ids"] > 0).sum() == sum(sizes)
    assert batch["input_ids"].shape[1] == max(sizes)
    repeated = sum(len(g.completion_ids) - 1 for g in GROUPS)
    assert batch["token_mask"].sum() == sum(sizes) - repeated


def test_each_real_token_counts_once_with_last_tokens() -> None:
    batch = shared_layout(GROUPS, K, 30, last_tokens=True)
    counted = sorted(batch["input_ids"][batch["token_mask"] == 1].tolist())
    assert counted == sorted(x for g in GROUPS for ids in [g.prompt_ids, *g.completion_ids] for x in ids)


@pytest.mark.parametrize("budget", [0, 30, 45, 10_000])
def test_packing_keeps_groups_whole_and_within_the_budget(budget: int) -> None:
    batch = shared_layout(GROUPS, K, budget)
    rows_of: dict[int, set[int]] = {}
    for row, column in (batch["index"] >= 0).nonzero().tolist():
        rows_of.setdefault(int(batch["index"][row, column]) // (K * T), set()).add(row)
    assert sorted(rows_of) == list(range(B))
    assert all(len(rows) == 1 for rows in rows_of.values())
    sizes = [len(g.prompt_ids) - 1 + sum(map(len, g.completion_ids)) for g in GROUPS]
    used = (batch["segment_ids"] > 0).sum(1)
    members = [[b for b, rows in rows_of.items() if rows == {row}] for row in range(len(used))]
    assert all(n <= budget or len(m) == 1 for n, m in zip(used.tolist(), members, strict=True))
    if budget == 10_000:
        assert len(used) == 1
    if budget == 0:
        assert used.tolist() == sorted(sizes, reverse=True)


def test_first_fit_decreasing_on_random_lengths() -> None:
    """The number of rows is at most 11/9 of the optimum plus one (the bound of first-fit decreasing)."""
    draw = random.Random(3)
    groups = [PromptGroup([1] * draw.randrange(1, 40), [[2] * draw.randrange(1, 20)] * 2) for _ in range(60)]
    batch = shared_layout(groups, 2, 100)
    total = int((batch["segment_ids"] > 0).sum())
    assert batch["input_ids"].shape[0] <= 11 / 9 * -(-total // 100) + 1


def test_gathering_reads_the_last_columns_in_float32_and_passes_gradients() -> None:
    batch = padded_layout([PromptGroup([5, 6], [[7, 8], [9]])], 2)
    values = torch.tensor([[9, 9, -1, -2], [9, 9, -3, float("nan")]], dtype=torch.bfloat16, requires_grad=True)
    logps = gather_token_logps(values, batch["index"], (1, 2, 2))
    assert logps.dtype == torch.float32
    assert logps.tolist() == [[[-1, -2], [-3, 0]]]
    (logps * torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 0, 1, 2], [0, 0, 3, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptGroup([], [[1]]), "empty prompt"),
        (lambda: PromptGroup([1], []), "no response"),
        (lambda: PromptGroup([1], [[2], [], [3], []]), r"\[1, 3\]"),
        (lambda: padded_layout([PromptGroup([1], [[2], [3]])], 1), "at least 2"),
        (lambda: shared_layout([PromptGroup([1], [[2], [3]])], 1), "at least 2"),
        (lambda: shared_layout([], 1), "at least one group"),
    ],
)
def test_bad_groups_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
