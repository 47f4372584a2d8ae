"""Evaluate a policy by samples, rewards and KL, and compare it before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .judging.contracts import Reward
from .judging.rewards import apply_reward
from .sampling.samples import AnyPrompt, Samples
from .sampling.sequence_kl import Reference, SequenceKL, sequence_kls
from .sampling.transformers_sampling import sample
from .stats import Interval, bootstrap_difference, bootstrap_mean
from .win_rates import WinRate, win_rate_of


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate_policy`.

    Attributes:
        samples: [N] one completion per prompt.
        rewards: [N] reward of each completion.
        reward: mean reward with its interval over prompts.
        kls: [N] KL of the next-token distributions, summed over each sample's tokens, nats. None without a reference.
        kl: sequence KL to the reference, None without one.
        seed: seed of the samples.
        max_new_tokens: maximum length of the samples, in tokens.
    """

    samples: Samples
    rewards: list[float]
    reward: Interval
    kls: list[float] | None
    kl: SequenceKL | None
    seed: int
    max_new_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything except token ids, ready for JSON."""
        rows = zip(self.samples.prompts, self.samples.completions, self.rewards, strict=True)
        return {
            "reward": self.reward.as_dict(),
            "kl": None if self.kl is None else self.kl.as_dict(),
            "prompts": len(self.samples),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.samples.temperature,
            "seed": self.seed,
            "samples": [{"prompt": p, "completion": c, "reward": r} for p, c, r in rows],
        }


def evaluate_policy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[AnyPrompt],
    reward: Reward,
    *,
    reference: Reference | None = None,
    max_new_tokens: int = 24,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Sample one completion per prompt at temperature 1, score it, and estimate the KL to the reference.

    The model's modes, its adapters and the caller's random state are restored.

    Args:
        model: a causal language model, with or without PEFT, in any mode.
        tokenizer: its tokenizer.
        prompts: [N] as in `sample`, N >= 2. They should all differ.
        reward: from `get_reward`, or any function of prompts and completions.
        reference: as in `sequence_kl`. None skips the KL.
        max_new_tokens: maximum length of a sample, in tokens.
        seed: seed of the samples. To compare two policies, use the same seed, prompts and batch size.
        batch_size: prompts per batch.
        progress: whether to show a progress bar.

    Returns:
        samples, rewards and KL.

    Raises:
        ValueError: there are fewer than two prompts, or an argument is out of range.
        RewardError: the reward didn't return one finite number per completion.
    """
    if len(prompts) < 2:
        raise ValueError(f"An interval needs at least two prompts, got {len(prompts)}.")
    samples = sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    rewards = apply_reward(reward, samples.prompts, samples.completions)
    reward_interval = bootstrap_mean(rewards)
    if reference is None:
        return Evaluation(samples, rewards, reward_interval, None, None, seed, max_new_tokens)
    values = sequence_kls(model, samples, reference, batch_size=batch_size)
    kl = SequenceKL.of(values)
    return Evaluation(samples, rewards, reward_interval, values[:, 1].tolist(), kl, seed, max_new_tokens)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same prompts.

    Attributes:
        before: evaluation of the untrained policy.
        after: evaluation of the trained policy.
        difference: mean reward after - before, with its paired interval.
        win_rate: how often the sample after training has the higher reward. Ties count half.
    """

    before: Evaluation
    after: Evaluation
    difference: Interval
    win_rate: WinRate

    def as_dict(self) -> dict[str, Any]:
        """Return everything except token ids, ready for JSON."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "difference": self.difference.as_dict(),
            "win_rate": self.win_rate.as_dict(),
        }

    def print(self) -> None:
        """Print `comparison_table` to the terminal."""
        Console().print(comparison_table(self))


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Pair two evaluations prompt by prompt.

    Raises:
        ValueError: they differ in prompts, seed or length, so they can't be paired.
    """
    for name, first, second in (
        ("prompts", before.samples.prompts, after.samples.prompts),
        ("seed", before.seed, after.seed),
        ("max_new_tokens", before.max_new_tokens, after.max_new_tokens),
    ):
        if first != second:
            raise ValueError(f"The evaluations before and after differ in {name}, so they can't be paired.")
    # Identical texts are a tie, even if their rewards differ by rounding in another batch.
    same = [one == other for one, other in zip(before.samples.completions, after.samples.completions, strict=True)]
    rewards = zip(same, before.rewards, after.rewards, strict=True)
    verdicts = [0.5 if equal or one == other else float(other > one) for equal, one, other in rewards]
    return Comparison(before, after, bootstrap_difference(before.rewards, after.rewards), win_rate_of(verdicts))


def comparison_table(comparison: Comparison, *, samples: int = 3) -> Group:
    """Return tables for `rich.print`: rewards and KL, then the first samples side by side.

    Args:
        comparison: the two evaluations.
        samples: number of samples to show. They are the first ones, not the best.
    """
    before, after, difference = comparison.before, comparison.after, comparison.difference
    numbers = Table(
        title=Text(
            f"{len(before.samples)} prompts, {before.max_new_tokens} new tokens, "
            f"[{100 * difference.level:g} % interval], sequence KL"
        )
    )
    for column in ("", "before", "after", "difference"):
        numbers.add_column(column, justify="right" if column else "left")
    numbers.add_row("mean reward", *map(_interval, (before.reward, after.reward)), _interval(difference, "+"))
    numbers.add_row("win rate", "", _interval(comparison.win_rate.rate), "")
    numbers.add_row("KL, nats ± SE", _kl(before.kl), _kl(after.kl), "")
    texts = Table(title="The same prompts and random numbers, before and after", show_lines=True, expand=True)
    for column in ("prompt", "before", "after"):
        texts.add_column(column, ratio=1 if column == "prompt" else 2)
    for row in range(min(samples, len(before.samples))):
        texts.add_row(Text(before.samples.prompts[row]), _sample(before, row), _sample(after, row))
    return Group(numbers, texts) if samples else Group(numbers)


def _interval(interval: Interval, sign: str = "") -> Text:
    # Text, because rich reads brackets in a plain string as markup.
    return Text(f"{interval.mean:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]")


def _kl(kl: SequenceKL | None) -> str:
    return "-" if kl is None else f"{kl.mean:.2f} ± {kl.standard_error:.2f}"


def _sample(evaluation: Evaluation, row: int) -> Text:
    completion = " ".join(evaluation.samples.completions[row].split())
    return Text(completion).append(f" ({evaluation.rewards[row]:+.3f})", style="bold")
