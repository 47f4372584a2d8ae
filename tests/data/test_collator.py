"""Rows of different sizes become one batch; what stands where there is nothing is marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import find_batch_size

from trl_dpo_ext.data.collator import PreferenceCollator
from trl_dpo_ext.modeling.layout import PromptGroup, padded_layout

ROWS: list[dict[str, Any]] = [
    {"prompt_ids": [5, 6], "completion_ids": [[7], [8, 9, 3]], "ranks": [1, 0], "scores": [0.5, 2.0]},
    {"prompt_ids": [4], "completion_ids": [[6, 3], [3], [9, 9]], "ranks": [2, 0, 0], "scores": [-1.0, 3.0, 3.0]},
]


def test_a_ragged_batch():
    batch = PreferenceCollator(padded_layout)(ROWS)
    # transformers counts the examples of a batch in its first tensor.
    assert next(iter(batch)) == "ranks"
    assert find_batch_size(batch) == 2
    expected = {
        "ranks": torch.tensor([[1, 0, 0], [2, 0, 0]]),
        "lengths": torch.tensor([[1, 3, 0], [2, 1, 2]]),
        "mask": torch.tensor([[True, True, False], [True, True, True]]),
        "scores": torch.tensor([[0.5, 2.0, 0.0], [-1.0, 3.0, 3.0]]),
        "input_ids": torch.tensor(
            [[5, 6, 7, 0, 0], [5, 6, 8, 9, 3], [4, 6, 3, 0, 0], [4, 3, 0, 0, 0], [4, 9, 9, 0, 0]]
        ),
        "labels": torch.tensor(
            [
                [-100, -100, 7, -100, -100],
                [-100, -100, 8, 9, 3],
                [-100, 6, 3, -100, -100],
                [-100, 3, -100, -100, -100],
                [-100, 9, 9, -100, -100],
            ]
        ),
    }
    for name, values in expected.items():
        assert torch.equal(batch[name], values), name
        assert batch[name].dtype == values.dtype, name


def test_columns_that_rows_do_not_have_are_not_made_up():
    rows = [{name: row[name] for name in ("prompt_ids", "completion_ids", "ranks")} for row in ROWS]
    batch = PreferenceCollator(padded_layout)(rows)
    assert not {"rows", "scores", "ref_token_logps"} & set(batch)


def test_row_numbers_are_handed_on():
    batch = PreferenceCollator(padded_layout)([{**ROWS[0], "row": 7}, {**ROWS[1], "row": 2}])
    assert torch.equal(batch["rows"], torch.tensor([7, 2]))


def test_stored_reference_log_probs_stand_where_their_tokens_are():
    stored = [[[-1.0], [-2.0, -3.0, -4.0]], [[-5.0, -6.0], [-7.0], [-8.0, -9.0]]]
    by_prompt = {tuple(row["prompt_ids"]): values for row, values in zip(ROWS, stored, strict=True)}

    def lookup(group: PromptGroup) -> Any:
        return [np.array(values) for values in by_prompt[tuple(group.prompt_ids)]]

    batch = PreferenceCollator(padded_layout, lookup)(ROWS)
    assert batch["ref_token_logps"].tolist() == [
        [[-1, 0, 0], [-2, -3, -4], [0, 0, 0]],
        [[-5, -6, 0], [-7, 0, 0], [-8, -9, 0]],
    ]
    assert batch["ref_token_logps"].dtype == torch.float32


def test_a_batch_of_which_one_prompt_is_not_stored_has_no_reference_log_probs():
    def lookup(group: PromptGroup) -> Any:
        return [np.zeros(len(ids)) for ids in group.completion_ids] if group.prompt_ids == [4] else None

    assert "ref_token_logps" not in PreferenceCollator(padded_layout, lookup)(ROWS)
    assert "ref_token_logps" in PreferenceCollator(padded_layout, lookup)(ROWS[1:])


def test_the_layout_gets_the_groups_and_the_width():
    seen = []

    def layout(groups: Any, width: int) -> dict[str, torch.Tensor]:
        seen.append((list(groups), width))
        return {"input_ids": torch.zeros(1, 1)}

    batch = PreferenceCollator(layout)(ROWS)
    assert seen == [([PromptGroup([5, 6], [[7], [8, 9, 3]]), PromptGroup([4], [[6, 3], [3], [9, 9]])], 3)]
    assert batch["input_ids"].shape == (1, 1)


def test_eos_is_scored_also_where_it_is_the_padding():
    eos = 3
    rows = [{**ROWS[0], "completion_ids": [[7, eos], [8, 9, eos]]}]
    labels = PreferenceCollator(padded_layout)(rows)["labels"]
    assert (labels == eos).sum(dim=1).tolist() == [1, 1]
