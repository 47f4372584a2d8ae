"""What losses learn from: the responses of the training prompts, judged, in several kinds of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..parsing import ParseError
from ..registry import did_you_mean
from .sampling import EOS, NEW_TOKENS, sample_responses
from .truths import Truth
from .world import World


@dataclass(frozen=True)
class Judged:
    """Responses to the training prompts, scored, with the reference's log-probs.

    Attributes:
        prompts: [P, PROMPT_TOKENS] int64.
        ids: [P, R, T] int64, `EOS` after the end. R is 8 for the world's responses, made once for all runs, and 2 for
            those of a policy.
        lengths: [P, R] int64.
        scores: [P, R] float32, what the labels are made from.
        ref_token_logps: [P, R, T] float32, 0 after the end, nats.
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


def judge(world: World, truth: Truth) -> Judged:
    """Score the world's responses, and run the reference over them once."""
    ids = torch.tensor([[row + [EOS] * (NEW_TOKENS - len(row)) for row in rows] for rows in world.responses])
    lengths = torch.tensor([[len(row) for row in rows] for rows in world.responses])
    return _judged(world, truth, ids, lengths)


def judge_policy(world: World, truth: Truth, policy: Any, generator: torch.Generator) -> Judged:
    """Sample two responses of a policy to each training prompt, score them, and run the reference over them."""
    prompts = world.prompt_ids("train").repeat_interleave(2, dim=0)
    sampled = sample_responses(policy, prompts, generator)
    return _judged(world, truth, sampled.ids.view(-1, 2, NEW_TOKENS), sampled.lengths.view(-1, 2))


@torch.no_grad()
def _judged(world: World, truth: Truth, ids: Tensor, lengths: Tensor) -> Judged:
    prompts = world.prompt_ids("train")
    texts = [world.text(prompt) for prompt in world.prompts["train"] for _ in range(ids.shape[1])]
    completions = [f" {world.text(row)}" for row in ids.flatten(0, 1).tolist()]
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
    "on_policy": _pairs,
}
"""Kinds of data by name. Pairs are two of the eight responses; `flipped` has 30 % wrong labels, `noise` 10 %. Those of
`on_policy` are two responses of the policy itself, sampled anew now and then."""

ON_POLICY = ("on_policy",)

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
