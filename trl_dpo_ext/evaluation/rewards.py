"""Rewards: functions that say how good completions are, by name or by dotted path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module

from ..registry import did_you_mean

Reward = Callable[[list[str], list[str]], list[float]]
"""`reward(prompts, completions) -> rewards`, all [N]; higher is better."""


class RewardError(ValueError):
    """A reward that doesn't exist, can't be loaded, or returns something other than one finite number a completion."""


def get_reward(name: str) -> Reward:
    """Return a reward by name ("vader") or dotted path ("package.module:function").

    Raises:
        RewardError: an unknown name, a module that can't be imported, no such function in it, or a package that a
            ready reward needs and isn't installed.
    """
    if ":" in name:
        return _from_path(name)
    if name not in _READY:
        known = ", ".join(sorted(_READY))
        raise RewardError(
            f"Unknown reward {name!r}.{did_you_mean(name, _READY)} Known rewards: {known}; your own as "
            "'package.module:function'."
        )
    return _READY[name]()


def apply_reward(reward: Reward, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return `reward` of each completion, checked.

    Args:
        reward: the reward.
        prompts: [N] text.
        completions: [N] text behind each prompt, leading space included.

    Raises:
        RewardError: not one finite number for each completion; names the row.
    """
    rewards = [float(value) for value in reward(list(prompts), list(completions))]
    if len(rewards) != len(completions):
        raise RewardError(f"The reward gave {len(rewards)} values for {len(completions)} completions.")
    for row, value in enumerate(rewards):
        if not math.isfinite(value):
            raise RewardError(f"The reward of completion {row} is {value}, not a finite number: {completions[row]!r}")
    return rewards


def vader() -> Reward:
    """Return VADER's compound score of prompt + completion, in [-1, 1].

    The whole text is scored, not the completion alone, so that a negation or an intensifier at the end of the prompt
    reaches the words behind it. The quickstart's data is scored by this function too.

    Raises:
        RewardError: vaderSentiment isn't installed.

    Example:
        >>> vader()(["The film is not", "The film is"], [" good", " good"])
        [-0.3412, 0.4404]

    Reference:
        Hutto & Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text,
        ICWSM 2014. The lexicon and rules are those of the vaderSentiment package.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise RewardError("The reward 'vader' needs vaderSentiment: pip install 'trl-dpo-ext[demo]'.") from error
    analyzer = SentimentIntensityAnalyzer()

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [
            analyzer.polarity_scores(prompt + completion)["compound"]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    return reward


def _from_path(path: str) -> Reward:
    module_name, _, function = path.partition(":")
    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:
        raise RewardError(f"The reward {path!r}: can't import {module_name!r}: {error}") from error
    reward = getattr(module, function, None)
    if not callable(reward):
        found = "is not a function" if hasattr(module, function) else "doesn't exist"
        near = did_you_mean(function, [name for name in vars(module) if callable(getattr(module, name))])
        raise RewardError(f"The reward {path!r}: {function!r} in {module.__file__} {found}.{near}")
    return reward


_READY: dict[str, Callable[[], Reward]] = {"vader": vader}
