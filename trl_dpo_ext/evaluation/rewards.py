"""Rewards: functions that say how good completions are, by name, by dotted path, by model, or by endpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..registry import did_you_mean

Reward = Callable[[list[str], list[str]], list[float]]
"""`reward(prompts, completions) -> rewards`, all [N]; higher is better."""

ENDPOINT = "endpoint:"


class RewardError(ValueError):
    """A reward that doesn't exist, can't be loaded, or returns something other than one finite number a completion."""


def get_reward(name: str, **endpoint: Any) -> Reward:
    """Return a reward by its name.

    Args:
        name: "vader"; "package.module:function"; a Hub id or a folder of a classifier or reward model of
            transformers, which `classifier` loads; or "endpoint:MODEL", the grades of a model behind an
            OpenAI-compatible endpoint.
        endpoint: `template` and the arguments of `Endpoint`, for such a reward only.

    Raises:
        RewardError: an unknown name, a module that can't be imported, no such function in it, a package that a
            ready reward needs and isn't installed, a model that can't be loaded, or arguments of an endpoint that are
            unusable or belong to none.
    """
    if name.startswith(ENDPOINT):
        from .endpoint_judges import EndpointReward

        return EndpointReward(name.removeprefix(ENDPOINT), **endpoint)
    if endpoint:
        raise RewardError(f"The reward {name!r} asks no endpoint, so it takes no {', '.join(sorted(endpoint))}.")
    if name in _READY:
        return _READY[name]()
    if "/" in name or Path(name).is_dir():
        from .classifier import classifier

        return classifier(name)
    if ":" in name:
        return _from_path(name)
    known = ", ".join(sorted(_READY))
    raise RewardError(
        f"Unknown reward {name!r}.{did_you_mean(name, _READY)} Known rewards: {known}; a classifier or reward model "
        "by Hub id (owner/name) or folder; your own as 'package.module:function'; endpoint:MODEL."
    )


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
