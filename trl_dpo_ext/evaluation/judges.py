"""Judges: functions that say which of two completions of a prompt is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .rewards import ENDPOINT, Reward, RewardError, apply_reward, get_reward

Judge = Callable[[list[str], list[str], list[str]], Sequence[float | None]]
"""`judge(prompts, firsts, seconds) -> verdicts`, all [N]: 1 where the first completion is better, 0 where the second
is, 0.5 for a tie, None where the judge came to no verdict."""


class JudgeError(ValueError):
    """A judge that doesn't exist, can't be asked, or says something other than a verdict for each pair."""


class EndpointError(JudgeError, RewardError):
    """A model behind an endpoint can't be asked, or doesn't answer, whether as a judge or as a reward."""


def get_judge(name: str, **endpoint: Any) -> Judge:
    """Return a judge by its name.

    Args:
        name: "endpoint:MODEL", a model behind an OpenAI-compatible endpoint, or a reward as `get_reward` takes it:
            the completion with the higher reward is better.
        endpoint: `template` and the arguments of `Endpoint`, for such a judge only.

    Raises:
        JudgeError: the endpoint's arguments are unusable, or belong to no endpoint.
        RewardError: as `get_reward`.
    """
    if name.startswith(ENDPOINT):
        from .endpoint_judges import EndpointJudge

        return EndpointJudge(name.removeprefix(ENDPOINT), **endpoint)
    if endpoint:
        raise JudgeError(f"The judge {name!r} is a reward, which takes no {', '.join(sorted(endpoint))}.")
    return reward_judge(get_reward(name))


def reward_judge(reward: Reward) -> Judge:
    """Return the judge that prefers the completion with the higher reward; equal rewards are a tie."""

    def judge(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float | None]:
        # Together, so that both completions of a prompt are scored in one call.
        rewards = apply_reward(reward, prompts + prompts, firsts + seconds)
        pairs = zip(rewards[: len(prompts)], rewards[len(prompts) :], strict=True)
        return [0.5 if first == second else float(first > second) for first, second in pairs]

    return judge


def apply_judge(
    judge: Judge, prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
) -> list[float | None]:
    """Return the verdict of each pair, checked. The same text twice is a tie, and no judge is asked.

    Raises:
        JudgeError: not one verdict for each pair; names the row.
        ValueError: different numbers of prompts and completions.
    """
    if not len(prompts) == len(firsts) == len(seconds):
        raise ValueError(f"{len(prompts)} prompts, but {len(firsts)} and {len(seconds)} completions.")
    differ = [row for row in range(len(prompts)) if firsts[row] != seconds[row]]
    verdicts: list[float | None] = [0.5] * len(prompts)
    if not differ:
        return verdicts
    found = judge(*([texts[row] for row in differ] for texts in (prompts, firsts, seconds)))
    if len(found) != len(differ):
        raise JudgeError(f"The judge gave {len(found)} verdicts for {len(differ)} pairs.")
    for row, verdict in zip(differ, found, strict=True):
        if verdict not in (0, 0.5, 1, None):
            raise JudgeError(f"The judge's verdict of pair {row} is {verdict!r}, expected 1, 0.5, 0 or None.")
        verdicts[row] = None if verdict is None else float(verdict)
    return verdicts
