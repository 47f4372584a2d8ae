"""What a reward and a judge are, and the errors they raise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Reward = Callable[[list[str], list[str]], list[float]]
"""`reward(prompts, completions) -> rewards`, all [N]. Higher is better."""

Judge = Callable[[list[str], list[str], list[str]], Sequence[float | None]]
"""`judge(prompts, firsts, seconds) -> verdicts`, all [N]: 1 if the first completion is better, 0 if the second is, 0.5
for a tie, None for no verdict."""


class RewardError(ValueError):
    """A reward is unknown, can't be loaded, or didn't return one finite number per completion."""


class UnknownRewardError(RewardError):
    """No reward has this name."""


class JudgeError(ValueError):
    """A judge can't be used, or didn't return one verdict per pair."""


class EndpointError(JudgeError, RewardError):
    """A model behind an endpoint can't be used as a judge or a reward, or its answers can't."""


class SpendingCapError(EndpointError):
    """The cap on requests or tokens is reached. The answers so far are in the cache; a higher cap continues."""
