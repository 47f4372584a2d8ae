"""One trial: a loss trained in the small world with one setting and seed, and measured along the way."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.frontier.kl_budgets import best_mixture
from ..losses import get_loss
from ..training.objective import Objective, Term
from ..types import RankedResponses
from .feedback import KINDS, ON_POLICY, Feedback, Judged, judge, judge_policy, token_logps
from .sampling import exact_kl, sample_responses
from .truths import Truth
from .world import World

BUDGETS = (1.0, 2.0, 4.0, 8.0)  # nats
LEARNING_RATE = 1e-3
SEQUENCES = 64  # of a step: 32 pairs or 8 rankings
STEPS = 48
POINTS = (4, 8, 16, 32, 48)  # steps after which the policy is measured
FRESH_EVERY = 16  # steps between the samples of on-policy data
SAMPLES = {"pick": 2, "measure": 6}  # to each prompt at each point: what counts is measured more closely

_Measured = tuple[dict[str, Any], list[float], list[float]]  # a point; rewards and KLs, [N samples]


@dataclass(frozen=True)
class Setting:
    """What a loss is tried with.

    Attributes:
        hyperparameters: those that differ from the loss's defaults.
        learning_rate: as a multiple of the arena's.
    """

    hyperparameters: Mapping[str, Any]
    learning_rate: float = 1.0

    def as_text(self) -> str:
        """Return it as "beta=0.3, learning rate x3", or "defaults"."""
        parts = [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.hyperparameters.items()
        ]
        if self.learning_rate != 1:
            parts.append(f"learning rate x{self.learning_rate:g}")
        return ", ".join(parts) or "defaults"


class Stage:
    """What all trials with one reward share.

    Args:
        world: the small world.
        truth: the reward.

    Attributes:
        judged: the world's responses, scored, with the reference's log-probs.
    """

    def __init__(self, world: World, truth: Truth) -> None:
        self.world, self.truth = world, truth
        self.judged = judge(world, truth)
        self._starts: dict[tuple[str, int], _Measured] = {}

    def start(self, use: str, seed: int) -> _Measured:
        """Return the point of the reference."""
        if (use, seed) not in self._starts:
            self._starts[use, seed] = _measure(self, self.world.reference, use, seed, 0)
        return self._starts[use, seed]


def run_trial(stage: Stage, *, loss: str, setting: Setting, kind: str, seed: int, use: str) -> dict[str, Any]:
    """Train and measure once.

    Args:
        stage: world, reward and data.
        loss: a registered loss.
        setting: its hyperparameters.
        kind: a kind of data.
        seed: of the data drawn, of their order and of the samples. Trials of other losses with this seed see the same.
        use: the prompts to measure on: "pick" or "measure".

    Returns:
        A record: `points` (step, KL in nats, reward, length in tokens, distinct bigrams), `within` (budget -> reward),
        `chosen_shift` (nats that better responses gained in log-prob at the end), `diverged`, and `seconds` of a core.
    """
    started = time.process_time()
    spec = get_loss(loss)
    objective = Objective([Term(spec, spec.check(setting.hyperparameters), 1.0)])
    world, judged = stage.world, stage.judged
    feedback = KINDS[kind](judged, torch.Generator().manual_seed(seed))
    policy = world.policy().train()
    rate = LEARNING_RATE * setting.learning_rate
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    batches = _batches(feedback, seed)
    measured = [stage.start(use, seed)]
    diverged = False
    for step in range(1, STEPS + 1):
        if kind in ON_POLICY and step % FRESH_EVERY == 1:
            generator = torch.Generator().manual_seed(1_000_000 + 1000 * seed + step)
            judged = judge_policy(world, stage.truth, policy.eval(), generator)
            feedback = KINDS[kind](judged, generator)
            batches = _batches(feedback, seed + step)
            policy.train()
        rows = next(batches)
        responses = _responses(policy, world, judged, feedback, rows, objective)
        values, _ = objective(responses, training=True)
        loss_value = values.mean()
        optimizer.zero_grad()
        if loss_value.requires_grad:
            loss_value.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        if not math.isfinite(loss_value.item()) or not torch.isfinite(norm):
            diverged = True
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 4)
        optimizer.step()
        if step in POINTS:
            measured.append(_measure(stage, policy, use, seed, step))
    points = [point for point, _, _ in measured]
    rewards, kls = (np.array([one[part] for one in measured]) for part in (1, 2))
    return {
        "points": points,
        "within": {f"{budget:g}": _within(rewards, kls, budget) for budget in BUDGETS},
        "chosen_shift": _chosen_shift(policy, judged, feedback),
        "diverged": diverged,
        "seconds": round(time.process_time() - started, 2),
    }


def _batches(feedback: Feedback, seed: int) -> Any:
    """Yield the rows of each step, shuffled anew for each pass over them."""
    generator = torch.Generator().manual_seed(seed)
    size = SEQUENCES // feedback.responses.shape[1]
    while True:
        order = torch.randperm(len(feedback.prompts), generator=generator)
        yield from order[: len(order) // size * size].split(size)


def _responses(
    policy: Any, world: World, judged: Judged, feedback: Feedback, rows: Tensor, objective: Objective
) -> RankedResponses:
    """Return what the loss sees of some rows."""
    needs = objective.needs
    prompts, chosen = feedback.prompts[rows], feedback.responses[rows]
    ids = judged.ids[prompts[:, None], chosen]
    lengths = judged.lengths[prompts[:, None], chosen]
    logps = token_logps(policy, judged.prompts[prompts], ids, lengths)
    ref_logps = judged.ref_token_logps[prompts[:, None], chosen] if objective.reads_reference else None
    extra: dict[str, Any] = {}
    if "token_logps" in needs:
        extra |= {"token_logps": logps, "ref_token_logps": ref_logps}
    if "reference_scores" in needs:
        scores = judged.scores[prompts]
        extra |= {"reference_scores": scores, "reference_scores_mask": torch.ones_like(scores, dtype=torch.bool)}
    if "mismatched" in needs:
        extra |= _mismatched(policy, world, judged, prompts, ids, lengths)
    return RankedResponses(
        logps=logps.sum(dim=2),
        ref_logps=None if ref_logps is None else ref_logps.sum(dim=2),
        lengths=lengths,
        ranks=feedback.ranks[rows],
        mask=torch.ones_like(lengths, dtype=torch.bool),
        scores=feedback.scores[rows],
        labels=feedback.labels[rows],
        **extra,
    )


@torch.no_grad()
def _mismatched(
    policy: Any, world: World, judged: Judged, prompts: Tensor, ids: Tensor, lengths: Tensor
) -> dict[str, Tensor]:
    """The log-probs of each prompt's first response after the next prompt of the batch."""
    others = judged.prompts[prompts.roll(1)]
    first, length = ids[:, :1], lengths[:, :1]
    own = token_logps(policy, others, first, length).sum(dim=(1, 2))
    theirs = token_logps(world.reference, others, first, length).sum(dim=(1, 2))
    return {"mismatched_logps": own, "ref_mismatched_logps": theirs}


def _measure(stage: Stage, policy: Any, use: str, seed: int, step: int) -> _Measured:
    """Sample and return the point, the rewards and the KLs, [N samples]. All points have the same random numbers."""
    world, truth, was_training = stage.world, stage.truth, policy.training
    policy.eval()
    prompts = world.prompt_ids(use).repeat(SAMPLES[use], 1)
    sampled = sample_responses(policy, prompts, torch.Generator().manual_seed(seed))
    kls = exact_kl(sampled, world.reference, prompts)
    rows = [ids[:length] for ids, length in zip(sampled.ids.tolist(), sampled.lengths.tolist(), strict=True)]
    completions = [f" {world.text(row)}" for row in rows]
    texts = [world.text(prompt) for prompt in prompts.tolist()]
    rewards = truth.counts(texts, completions)
    bigrams = [pair for row in rows for pair in itertools.pairwise(row)]
    policy.train(was_training)
    point = {
        "step": step,
        "kl": float(kls.mean()),
        "reward": float(np.mean(rewards)),
        "label_reward": float(np.mean(truth.labels(texts, completions))),
        "length": float(sampled.lengths.float().mean()),
        "distinct_bigrams": len(set(bigrams)) / max(len(bigrams), 1),
    }
    return point, rewards, kls.tolist()


def _within(rewards: np.ndarray, kls: np.ndarray, budget: float) -> float:
    """Return the reward of the best mixture of two points within a KL, selected and measured on other samples.

    As `within_budgets` does it, for one run: `best_mixture` is selected by every second prompt and measured on the
    rest, and vice versa.

    Args:
        rewards, kls: [points, N], the first point at KL 0.
        budget: nats.
    """
    halves = (slice(0, None, 2), slice(1, None, 2))
    parts = []
    for here, there in (halves, halves[::-1]):
        means = rewards[:, here].mean(axis=1), np.maximum(kls[:, here].mean(axis=1), 0.0)
        means[1][0] = 0.0  # the reference itself, up to rounding
        shares = best_mixture(*means, budget)
        assert shares is not None
        parts.append(shares @ rewards[:, there])
    return float(np.concatenate(parts).mean())


@torch.no_grad()
def _chosen_shift(policy: Any, judged: Judged, feedback: Feedback) -> float:
    """Return the mean log-ratio of the best response of each row, nats; below 0, training displaced it."""
    best = feedback.responses.gather(1, feedback.scores.argmax(dim=1, keepdim=True))
    prompts = feedback.prompts
    ids, lengths = judged.ids[prompts[:, None], best], judged.lengths[prompts[:, None], best]
    own = token_logps(policy.eval(), judged.prompts[prompts], ids, lengths).sum(dim=2)
    return float((own - judged.ref_token_logps[prompts[:, None], best].sum(dim=2)).mean())
