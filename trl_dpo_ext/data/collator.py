"""Tokenized rows to the tensors of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling.layout import PromptGroup
from ..modeling.passes import PASSES, split_layout
from .mismatched import COLUMN

Layout = Callable[[Sequence[PromptGroup], int], dict[str, Tensor]]
Lookup = Callable[[PromptGroup], Sequence[np.ndarray] | None]

_LABELS = {True: 1, False: -1, None: 0}
_UNKNOWN = [float("nan")]  # a score that a row of a mixed dataset doesn't have


def _padded(values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    width = max(map(len, values))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in values], dtype=dtype)


class PreferenceCollator:
    """Collate tokenized rows into rankings [B, K] and the model inputs that a layout makes of their tokens.

    Args:
        layout: turns B groups and K, the width of the ranking, into model inputs and the `index` of the response that
            each scored position belongs to.
        reference: returns a group's stored reference log-probs, one value per token of each response, or None if they
            aren't stored.
        responses_per_pass: the most responses of a prompt in one forward pass; None for all in one.
    """

    def __init__(self, layout: Layout, reference: Lookup | None = None, responses_per_pass: int | None = None) -> None:
        self.layout = layout
        self.reference = reference
        self.responses_per_pass = responses_per_pass

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate B tokenized rows.

        Returns:
            `ranks` int64 [B, K]; `lengths` int64 [B, K], in tokens; `mask` bool [B, K], True for a response; `rows`
            int64 [B] (row numbers in the dataset), `scores` float32 [B, K], `response_labels` int8 [B, K] (+1
            desirable, -1 undesirable, 0 unknown), `reference_scores` float32 [B, M] with `reference_scores_mask` bool
            [B, M], `prompt_weights` float32 [B] and `mismatched` bool [B, K] (a completion of another prompt, whose
            mask is False) where the rows have them; `ref_token_logps` float32 [B, K, T] in nats where all
            are stored; and what the layout returns, or with `responses_per_pass` a list of it under `passes`. `ranks`
            comes first because transformers reads the batch size from the first tensor.
        """
        groups = [PromptGroup(row["prompt_ids"], row["completion_ids"]) for row in rows]
        lengths = _padded([[len(c) for c in g.completion_ids] for g in groups], torch.int64)
        batch: dict[str, Any] = {
            "ranks": _padded([row["ranks"] for row in rows], torch.int64),
            "lengths": lengths,
            "mask": lengths > 0,
        }
        if COLUMN in rows[0]:
            # The last of a row's completions; no loss sees it as a response.
            width = lengths.shape[1]
            batch[COLUMN] = torch.arange(width) == (lengths > 0).sum(dim=1, keepdim=True) - 1
            batch["mask"] = batch["mask"] & ~batch[COLUMN]
        if "row" in rows[0]:
            batch["rows"] = torch.tensor([row["row"] for row in rows], dtype=torch.int64)
        if "scores" in rows[0]:
            batch["scores"] = _padded([row["scores"] or _UNKNOWN * len(row["ranks"]) for row in rows], torch.float32)
        if "labels" in rows[0]:
            batch["response_labels"] = _padded(
                [[_LABELS[label] for label in row["labels"]] for row in rows], torch.int8
            )
        if "reference_scores" in rows[0]:
            samples = [row["reference_scores"] or [] for row in rows]
            batch["reference_scores"] = _padded(samples, torch.float32)
            batch["reference_scores_mask"] = _padded([[True] * len(row) for row in samples], torch.bool)
        if "weight" in rows[0]:
            batch["prompt_weights"] = torch.tensor([1.0 if row["weight"] is None else row["weight"] for row in rows])
        if (ref_token_logps := self._stored(groups, lengths)) is not None:
            batch["ref_token_logps"] = ref_token_logps
        width = lengths.shape[1]
        if self.responses_per_pass is None:
            batch.update(self.layout(groups, width))
        else:
            batch[PASSES] = split_layout(self.layout, groups, width, self.responses_per_pass)
        return batch

    def _stored(self, groups: Sequence[PromptGroup], lengths: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        stored = np.zeros((*lengths.shape, int(lengths.max())), np.float32)
        for b, group in enumerate(groups):
            if (values := self.reference(group)) is None:
                return None
            for k, ids in enumerate(group.completion_ids):
                stored[b, k, : len(ids)] = values[k]
        return torch.from_numpy(stored)
