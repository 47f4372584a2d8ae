"""One policy's samples, rewards and KL; two of them side by side, for the terminal and for result.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .kl import Reference, SequenceKL, sequence_kls
from .rewards import Reward, apply_reward
from .sampling import Samples, sample
from .stats import Interval, bootstrap_difference, bootstrap_mean
from .win_rate import WinRate, win_rate_of


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_policy` found.

    Attributes:
        samples: [N] one completion for each prompt.
        rewards: [N] reward of each.
        reward: their mean with its interval over prompts.
        kls: [N] KL of the next-token distributions, summed along each sample, nats; None without a reference.
        kl: sequence KL to the reference, or None where there was none to compare with.
        seed: of the sampling.
        max_new_tokens: of the sampling.
    """

    samples: Samples
    rewards: list[float]
    reward: Interval
    kls: list[float] | None
    kl: SequenceKL | None
    seed: int
    max_new_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything but token ids, ready for JSON."""
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
    prompts: Sequence[str],
    reward: Reward,
    *,
    reference: Reference | None = None,
    max_new_tokens: int = 24,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Sample a completion for each prompt at temperature 1, score them, and estimate the KL to the reference.

    The model is left as it was: its modes, its adapters, the random state of the caller.

    Args:
        model: a causal language model, PEFT or not, in whatever mode.
        tokenizer: its tokenizer.
        prompts: [N] plain text, N >= 2, best all different.
        reward: from `get_reward`, or any function of prompts and completions.
        reference: as in `sequence_kl`; None leaves the KL out.
        max_new_tokens: tokens to sample at most.
        seed: of sampling. Give two policies the same seed, prompts and batch size to compare them.
        batch_size: prompts a forward.
        progress: show a progress bar.

    Raises:
        ValueError: fewer than two prompts, or an argument out of range.
        RewardError: the reward gave something other than one finite number a completion.
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
        before: of the untrained policy.
        after: of the trained one.
        difference: mean reward after - before with its paired interval.
        win_rate: how often the sample after has the higher reward, ties counting half.
    """

    before: Evaluation
    after: Evaluation
    difference: Interval
    win_rate: WinRate

    def as_dict(self) -> dict[str, Any]:
        """Return everything but token ids, ready for JSON."""
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
        ValueError: they were not made with the same prompts, seed and length, so their values don't pair up.
    """
    for name, first, second in (
        ("prompts", before.samples.prompts, after.samples.prompts),
        ("seed", before.seed, after.seed),
        ("max_new_tokens", before.max_new_tokens, after.max_new_tokens),
    ):
        if first != second:
            raise ValueError(f"The evaluations before and after differ in {name}: they can't be paired.")
    # The same text wins nothing, whatever its reward's last bits are in another batch.
    same = [one == other for one, other in zip(before.samples.completions, after.samples.completions, strict=True)]
    rewards = zip(same, before.rewards, after.rewards, strict=True)
    verdicts = [0.5 if equal or one == other else float(other > one) for equal, one, other in rewards]
    return Comparison(before, after, bootstrap_difference(before.rewards, after.rewards), win_rate_of(verdicts))


def comparison_table(comparison: Comparison, *, samples: int = 3) -> Group:
    """Return the comparison for `rich.print`: rewards and KL, then the first samples side by side.

    Args:
        comparison: of two evaluations.
        samples: how many samples to show; the first ones, not the best.
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
    # Text, since rich would read the brackets of a plain string as markup.
    return Text(f"{interval.mean:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]")


def _kl(kl: SequenceKL | None) -> str:
    return "-" if kl is None else f"{kl.mean:.2f} ± {kl.standard_error:.2f}"


def _sample(evaluation: Evaluation, row: int) -> Text:
    completion = " ".join(evaluation.samples.completions[row].split())
    return Text(completion).append(f" ({evaluation.rewards[row]:+.3f})", style="bold")
