"""Look up a judge by name and apply it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...registry import RegistryError, did_you_mean
from .contracts import Judge, JudgeError, Reward, UnknownRewardError
from .registration import JUDGES, Registered, register_judge
from .rewards import ENDPOINT, apply_reward, get_reward, reward_forms

__all__ = ["apply_judge", "get_judge", "judge_forms", "list_judges", "register_judge", "reward_judge"]


def list_judges() -> list[Registered[Judge]]:
    """Return the registered judges by name. A broken plugin gives a warning and is left out."""
    return list(JUDGES)


def judge_forms() -> str:
    """Return what a judge option accepts, for help texts: the registered judges, then everything that is a reward."""
    return ", ".join([*JUDGES.names(), reward_forms()])


def get_judge(name: str, **endpoint: Any) -> Judge:
    """Return a judge by name.

    Args:
        name: a registered judge, see `list_judges`; "endpoint:MODEL", a model behind an OpenAI-compatible endpoint; or
            any reward that `get_reward` accepts: the completion with the higher reward wins.
        endpoint: `template` and the arguments of `Endpoint`. Only for "endpoint:MODEL".

    Raises:
        JudgeError: the judge's plugin or optional package can't be loaded, or the endpoint's arguments are invalid or
            given for another judge.
        RewardError: as `get_reward`.
    """
    if name.startswith(ENDPOINT):
        from .endpoint_judges import EndpointJudge

        return EndpointJudge(name.removeprefix(ENDPOINT), **endpoint)
    registered = name in JUDGES
    if endpoint:
        kind = "uses no endpoint" if registered else "is a reward"
        raise JudgeError(f"The judge {name!r} {kind}, so it can't take {', '.join(sorted(endpoint))}.")
    if registered:
        return _registered(name)
    try:
        return reward_judge(get_reward(name))
    except UnknownRewardError as error:
        if judges := JUDGES.names(aliases=True):
            raise UnknownRewardError(f"{error} Judges: {', '.join(judges)}.{did_you_mean(name, judges)}") from None
        raise


def reward_judge(reward: Reward) -> Judge:
    """Return the judge that prefers the completion with the higher reward. Equal rewards are a tie."""

    def judge(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float | None]:
        # One call for both completions, so that they are scored together.
        rewards = apply_reward(reward, prompts + prompts, firsts + seconds)
        pairs = zip(rewards[: len(prompts)], rewards[len(prompts) :], strict=True)
        return [0.5 if first == second else float(first > second) for first, second in pairs]

    return judge


def apply_judge(
    judge: Judge, prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
) -> list[float | None]:
    """Return the verdict on each pair, and check the result. Identical texts are a tie; the judge isn't asked.

    Args:
        judge: the judge.
        prompts: [N] text.
        firsts: [N] text that follows each prompt.
        seconds: [N] text that follows each prompt.

    Returns:
        [N] 1, 0.5, 0 or None, as `Judge`.

    Raises:
        JudgeError: the judge didn't return one verdict per pair. The message names the row.
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
        raise JudgeError(f"The judge returned {len(found)} verdicts for {len(differ)} pairs.")
    for row, verdict in zip(differ, found, strict=True):
        if verdict not in (0, 0.5, 1, None):
            raise JudgeError(f"The judge's verdict on pair {row} is {verdict!r}, expected 1, 0.5, 0 or None.")
        verdicts[row] = None if verdict is None else float(verdict)
    return verdicts


def _registered(name: str) -> Judge:
    try:
        found = JUDGES.get(name)
        found.check_installed()
    except (RegistryError, ImportError) as error:
        raise JudgeError(str(error) if isinstance(error, RegistryError) else f"The judge {error}") from error
    return found.fn
