"""Look up a reward by name and apply it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ...registry import RegistryError, did_you_mean
from . import builtin  # noqa: F401  # registers the built-in rewards, before any other code can take their names
from .contracts import Reward, RewardError, UnknownRewardError
from .registration import REWARDS, Registered, register_reward

__all__ = ["apply_reward", "get_reward", "list_rewards", "register_reward", "reward_forms"]

ENDPOINT = "endpoint:"
MODEL_FORMS = (
    "a classifier or reward model (Hub id or folder), package.module:function, or endpoint:MODEL behind an "
    "OpenAI-compatible endpoint"
)


def list_rewards() -> list[Registered[Reward]]:
    """Return the registered rewards by name. A broken plugin gives a warning and is left out."""
    return list(REWARDS)


def reward_forms() -> str:
    """Return what a reward option accepts, for help texts: the registered names, then the other forms."""
    return ", ".join([*REWARDS.names(), MODEL_FORMS])


def get_reward(name: str, **endpoint: Any) -> Reward:
    """Return a reward by name.

    Args:
        name: a registered name, see `list_rewards`; "package.module:function"; a Hub id or folder of a classifier or
            reward model, which `classifier` loads; or "endpoint:MODEL", graded by a model behind an OpenAI-compatible
            endpoint.
        endpoint: `template` and the arguments of `Endpoint`. Only for "endpoint:MODEL".

    Raises:
        UnknownRewardError: no reward has the name.
        RewardError: the function, model, plugin or optional package can't be loaded, or the endpoint's arguments are
            invalid or given for another reward.
    """
    if name.startswith(ENDPOINT):
        from .endpoint_judges import EndpointReward

        return EndpointReward(name.removeprefix(ENDPOINT), **endpoint)
    if endpoint:
        raise RewardError(f"The reward {name!r} uses no endpoint, so it can't take {', '.join(sorted(endpoint))}.")
    if name in REWARDS:
        return _registered(name)
    if "/" in name or Path(name).is_dir():
        from .classifier import classifier

        return classifier(name)
    if ":" in name:
        return _from_path(name)
    known = REWARDS.names(aliases=True)
    raise UnknownRewardError(
        f"Unknown reward {name!r}.{did_you_mean(name, known)} Use one of these: {', '.join(known)}, {MODEL_FORMS}."
    )


def apply_reward(reward: Reward, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the reward of each completion, and check the result.

    Args:
        reward: the reward.
        prompts: [N] text.
        completions: [N] text that follows each prompt, leading space included.

    Returns:
        [N] finite numbers.

    Raises:
        RewardError: the reward didn't return one finite number per completion. The message names the row.
    """
    rewards = [float(value) for value in reward(list(prompts), list(completions))]
    if len(rewards) != len(completions):
        raise RewardError(f"The reward returned {len(rewards)} values for {len(completions)} completions.")
    for row, value in enumerate(rewards):
        if not math.isfinite(value):
            raise RewardError(f"The reward of completion {row} is {value}, not a finite number: {completions[row]!r}")
    return rewards


def _registered(name: str) -> Reward:
    try:
        found = REWARDS.get(name)
        found.check_installed()
    except (RegistryError, ImportError) as error:
        raise RewardError(str(error) if isinstance(error, RegistryError) else f"The reward {error}") from error
    return found.fn


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
