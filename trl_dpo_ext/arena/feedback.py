"""What losses learn from: the responses of the training prompts, judged, in several kinds of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..parsing import ParseError
from ..registry import did_you_mean
from .sampling import EOS, NEW_TOKENS
from .truths import Truth
from .world import World


@dataclass(frozen=True)
class Judged:
    """All responses to the training prompts, scored, with the reference's log-probs: made once for all runs.

    Attributes:
        prompts: [P, PROMPT_TOKENS] int64.
        ids: [P, 8, T] int64, `EOS` after the end.
        lengths: [P, 8] int64.
        scores: [P, 8] float32, what the labels are made from.
        ref_token_logps: [P, 8, T] float32, 0 after the end, nats.
    """

    prompts: Tensor
    ids: Tensor
    lengths: Tensor
    scores: Tensor
    ref_token_logps: Tensor


def token_logps(model: Any, prompts: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return [B, K, T] float32 log-probs of response tokens, 0 after the end, nats.

    Args:
        model: a causal language model.
        prompts: [B, P] int64.
        ids: [B, K, T] int64.
        lengths: [B, K] int64.
    """
    count, responses, length = ids.shape
    rows = torch.cat([prompts.repeat_interleave(responses, dim=0), ids.flatten(0, 1)], dim=1)
    logits = model(input_ids=rows, use_cache=False).logits[:, prompts.shape[1] - 1 : -1].float()
    chosen = logits.log_softmax(dim=-1).gather(-1, ids.flatten(0, 1).unsqueeze(-1)).squeeze(-1)
    alive = torch.arange(length) < lengths.flatten()[:, None]
    return (chosen * alive).view(count, responses, length)


@torch.no_grad()
def judge(world: World, truth: Truth) -> Judged:
    """Score the world's responses, and run the reference over them once."""
    prompts = world.prompt_ids("train")
    ids = torch.tensor([[row + [EOS] * (NEW_TOKENS - len(row)) for row in rows] for rows in world.responses])
    lengths = torch.tensor([[len(row) for row in rows] for rows in world.responses])
    texts = [world.text(prompt) for prompt in world.prompts["train"] for _ in range(ids.shape[1])]
    completions = [f" {world.text(row)}" for rows in world.responses for row in rows]
    scores = torch.tensor(truth.labels(texts, completions)).view(lengths.shape)
    logps = [
        token_logps(world.reference, *part)
        for part in zip(prompts.split(64), ids.split(64), lengths.split(64), strict=True)
    ]
    return Judged(prompts, ids, lengths, scores, torch.cat(logps))


@dataclass(frozen=True)
class Feedback:
    """Rows of one kind of data. The rows are those of some prompts, K responses each.

    Attributes:
        prompts: [R] int64, the row's prompt in `Judged`.
        responses: [R, K] int64, the row's responses in `Judged`.
        scores: [R, K] float32 as the data state them; flipped labels have flipped scores.
        ranks: [R, K] int64, 0 = best, equal = tie.
        labels: [R, K] int8, +1 desirable, -1 undesirable.
    """

    prompts: Tensor
    responses: Tensor
    scores: Tensor
    ranks: Tensor
    labels: Tensor


def _pairs(judged: Judged, generator: torch.Generator, flipped: float = 0.0) -> Feedback:
    """Two responses with different scores for each prompt that has them, drawn at random."""
    order = torch.rand(judged.scores.shape, generator=generator).argsort(dim=1)
    shuffled = judged.scores.gather(1, order)
    differs = shuffled != shuffled[:, :1]
    usable = differs.any(dim=1)
    other = order.gather(1, differs.long().argmax(dim=1, keepdim=True))
    responses = torch.cat([order[:, :1], other], dim=1)[usable]
    prompts = usable.nonzero().squeeze(1)
    scores = judged.scores[prompts].gather(1, responses)
    wrong = torch.rand(len(prompts), generator=generator) < flipped
    scores = torch.where(wrong[:, None], scores.flip(1), scores)
    return _ordered(prompts, responses, scores)


def _rankings(judged: Judged, generator: torch.Generator) -> Feedback:
    usable = (judged.scores != judged.scores[:, :1]).any(dim=1).nonzero().squeeze(1)
    responses = torch.arange(judged.scores.shape[1]).expand(len(usable), -1)
    return _ordered(usable, responses, judged.scores[usable])


def _thumbs(judged: Judged, generator: torch.Generator) -> Feedback:
    """Two responses to each prompt, each with a thumb up if its score is above the median of all; in no order."""
    order = torch.rand(judged.scores.shape, generator=generator).argsort(dim=1)[:, :2]
    prompts = torch.arange(len(judged.scores))
    scores = judged.scores.gather(1, order)
    labels = torch.where(scores > judged.scores.median(), 1, -1).to(torch.int8)
    return Feedback(prompts, order, scores, torch.zeros_like(order), labels)


def _ordered(prompts: Tensor, responses: Tensor, scores: Tensor) -> Feedback:
    better = (scores.unsqueeze(1) > scores.unsqueeze(2)).sum(dim=2)  # [R, K] how many are better than each
    labels = torch.where(scores > scores.mean(dim=1, keepdim=True), 1, -1).to(torch.int8)
    return Feedback(prompts, responses, scores, better, labels)


KINDS: dict[str, Callable[[Judged, torch.Generator], Feedback]] = {
    "pairs": _pairs,
    "rankings": _rankings,
    "flipped": lambda judged, generator: _pairs(judged, generator, 0.3),
    "thumbs": _thumbs,
    "noise": lambda judged, generator: _pairs(judged, generator, 0.1),
}
"""Kinds of data by name. Pairs are two of the eight responses; `flipped` has 30 % wrong labels, `noise` 10 %."""

DEFAULT_KINDS = ("pairs", "rankings", "flipped", "thumbs")


def check_kinds(names: list[str]) -> None:
    """Refuse unknown kinds of data.

    Raises:
        ParseError: names the nearest.
    """
    for name in names:
        if name not in KINDS:
            raise ParseError(
                f"There is no kind of data {name!r}.{did_you_mean(name, KINDS)} It has: {', '.join(KINDS)}."
            )
