"""Which prompts a loss can read: in a mixed dataset, rows have pairs, rankings, scores or labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses import LossSpec
from ..types import RankedResponses


@dataclass(frozen=True)
class Facts:
    """What is known of B prompts before any forward pass; the fields are those of `RankedResponses`."""

    mask: Tensor
    ranks: Tensor
    labels: Tensor | None
    scores: Tensor | None
    reference_scores_mask: Tensor | None

    @classmethod
    def of(cls, responses: RankedResponses) -> Facts:
        """Return what is known of the losses' input."""
        r = responses
        return cls(r.mask, r.ranks, r.labels, r.scores, r.reference_scores_mask)

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> Facts:
        """Return what is known of a batch of the collator."""
        optional = (batch.get(name) for name in ("response_labels", "scores", "reference_scores_mask"))
        return cls(batch["mask"], batch["ranks"], *optional)

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Facts:
        """Return what is known of rows in the internal form, before they are tokenized."""
        width = max(len(row["ranks"]) for row in rows)

        def padded(values: Sequence[Any], filler: Any, known: Mapping[Any, Any] | None = None) -> Tensor:
            cells = [[cell if known is None else known[cell] for cell in row or []] for row in values]
            return torch.tensor([[*row, *[filler] * (width - len(row))] for row in cells])

        def column(name: str) -> list[Any] | None:
            return [row[name] for row in rows] if name in rows[0] else None

        ranks, labels, scores, samples = map(column, ("ranks", "labels", "scores", "reference_scores"))
        assert ranks is not None
        return cls(
            mask=padded([[True] * len(row) for row in ranks], False),
            ranks=padded(ranks, 0),
            labels=None if labels is None else padded(labels, 0, {True: 1, False: -1, None: 0}),
            scores=None if scores is None else padded(scores, float("nan")),
            reference_scores_mask=None if samples is None else torch.tensor([[bool(row)] for row in samples]),
        )


def readable(spec: LossSpec, facts: Facts) -> Tensor:
    """Return [B] bool: the prompts from which a loss learns.

    A loss on labels reads prompts with a label, one on scores those whose responses all have a score (a missing score
    is NaN), one on the reference's scores those that have some; the others read prompts with two responses that aren't
    tied, or that are if they read ties.
    """
    mask = facts.mask
    if "labels" in spec.needs:
        found = torch.zeros_like(mask) if facts.labels is None else mask & (facts.labels != 0)
        able = found.any(dim=1)
    elif spec.single_responses:
        able = mask.any(dim=1)
    else:
        far = torch.iinfo(facts.ranks.dtype).max
        best = facts.ranks.masked_fill(~mask, far).amin(dim=1)
        worst = facts.ranks.masked_fill(~mask, -1).amax(dim=1)
        able = mask.sum(dim=1) >= 2 if "ties" in spec.needs else (best < worst) & (mask.sum(dim=1) >= 2)
    if "scores" in spec.needs and facts.scores is not None:
        able = able & (~facts.scores.isnan() | ~mask).all(dim=1)
    if "reference_scores" in spec.needs and facts.reference_scores_mask is not None:
        able = able & facts.reference_scores_mask.any(dim=1)
    return able


def counts(specs: Sequence[LossSpec], facts: Sequence[Facts]) -> Tensor:
    """Return [1 + losses] float32: the number of prompts, and how many of them each loss can read."""
    total = torch.zeros(1 + len(specs))
    for each in facts:
        read = [readable(spec, each).sum() for spec in specs]
        total = total.to(each.mask.device) + torch.stack(
            [each.mask.new_tensor(len(each.mask), dtype=torch.int64), *read]
        )
    return total


def only(responses: RankedResponses, able: Tensor) -> RankedResponses:
    """Return the responses with the other prompts masked, and without the NaN of missing scores."""
    mask = responses.mask & able.unsqueeze(1)
    scores = responses.scores
    return responses.replace(mask=mask, scores=None if scores is None else scores.masked_fill(~mask, 0))
