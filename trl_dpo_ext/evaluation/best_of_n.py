"""Best-of-n: what choosing the best of n samples reaches, for every n up to the number of samples taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .stats import Interval, bootstrap_means


@dataclass(frozen=True)
class BestOfN:
    """One point of the curve.

    Attributes:
        n: samples to choose from.
        reward: expected reward of the best of n, with its bootstrap interval over prompts.
        standard_error: of the expected reward, over prompts.
        kl_bound: no more than this many nats does best-of-n stray from the sampled model; see `kl_bound`.
    """

    n: int
    reward: Interval
    standard_error: float
    kl_bound: float

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return asdict(self)


def best_of_n(
    rewards: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[BestOfN]:
    """Return the curve of the expected best reward for n = 1 ... N, from N samples of each prompt.

    With a prompt's rewards in ascending order, r_1 <= ... <= r_N, the mean of the best over all subsets of n is

        sum over i = n ... N of  C(i - 1, n - 1) / C(N, n) * r_i

    since r_i is the best of a subset when the other n - 1 are among the i - 1 below it. It is unbiased for every n,
    uses all samples, and n = 1 gives the plain mean. The prompts are what varies: standard errors and intervals
    are over them, with the same resamples for every n.

    Args:
        rewards: [P, N], P >= 2 prompts with N independent samples each.
        level: of confidence.
        resamples: bootstrap samples drawn.
        seed: of the bootstrap.

    Returns:
        [N] points, n = 1 first.

    Raises:
        ValueError: fewer than two prompts, prompts with different numbers of samples, or a reward that isn't finite.

    Example:
        >>> [point.reward.mean for point in best_of_n([[0.0, 3.0, 6.0], [1.0, 1.0, 1.0]])]
        [2.0, 3.0, 3.5]

    Reference:
        The estimator is that of pass@k (Chen et al., arXiv 2107.03374, section 2.1), for rewards instead of passes.
    """
    counts = [len(row) for row in rewards]
    odd = next((row for row, count in enumerate(counts) if count != counts[0] or count == 0), None)
    if odd is not None:
        raise ValueError(
            f"Prompt {odd} has {counts[odd]} samples and prompt 0 has {counts[0]}; every prompt needs equally many."
        )
    ascending = np.sort(np.asarray(rewards, dtype=np.float64), axis=-1)
    samples = counts[0] if counts else 0
    best = ascending @ np.stack([_weights(n, samples) for n in range(1, samples + 1)], axis=1) if samples else ascending
    intervals = bootstrap_means(best, level=level, resamples=resamples, seed=seed)
    errors = best.std(axis=0, ddof=1) / math.sqrt(len(best))
    return [
        BestOfN(n, interval, float(error), kl_bound(n))
        for n, interval, error in zip(range(1, samples + 1), intervals, errors, strict=True)
    ]


def kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n, nats: the most that KL(best-of-n || sampled model) can be, for any reward.

    Exact where no two completions have the same reward and none has much probability by itself; else the KL is less.

    >>> kl_bound(1), round(kl_bound(16), 4)
    (0.0, 1.8351)

    Reference:
        Stiennon et al., arXiv 2009.01325, appendix G.3; Beirami et al., arXiv 2401.01879, who prove that it is a bound.
    """
    return math.log(n) - (n - 1) / n


def _weights(n: int, samples: int) -> np.ndarray:
    """[samples] the share of subsets of n whose best is the i-th in ascending order, without large binomials."""
    weights = np.zeros(samples)
    weight = n / samples
    for below in range(samples - 1, n - 2, -1):  # how many samples are below this one
        weights[below] = weight
        if below:
            weight *= (below - n + 1) / below
    return weights
