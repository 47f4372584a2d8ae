"""Best-of-n: the reward of the best of n samples, for every n up to the number of samples."""

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
        n: number of samples to choose from.
        reward: expected reward of the best of n, with its bootstrap interval over prompts.
        standard_error: standard error of the expected reward, over prompts.
        kl_bound: upper bound on the KL between best-of-n and the sampled model, nats; see `kl_bound`.
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

    Sort a prompt's rewards, r_1 <= ... <= r_N. The mean of the best over all subsets of size n is

        sum over i = n ... N of  C(i - 1, n - 1) / C(N, n) * r_i

    because r_i is the best of a subset if the other n - 1 are among the i - 1 below it. This estimate is unbiased for
    every n and uses all samples; n = 1 gives the plain mean. Standard errors and intervals are over prompts, with the
    same resamples for every n.

    Args:
        rewards: [P, N], P >= 2 prompts with N independent samples each.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        [N] points, n = 1 first.

    Raises:
        ValueError: there are fewer than two prompts, their numbers of samples differ, or a reward is not finite.

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
            f"Prompt {odd} has {counts[odd]} samples and prompt 0 has {counts[0]}. Every prompt needs the same number."
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
    """Return log n - (n - 1) / n, an upper bound on KL(best-of-n || sampled model) in nats, for any reward.

    The bound is exact if no two completions have the same reward and each has little probability; otherwise the KL is
    smaller.

    >>> kl_bound(1), round(kl_bound(16), 4)
    (0.0, 1.8351)

    Reference:
        Stiennon et al., arXiv 2009.01325, appendix G.3; Beirami et al., arXiv 2401.01879, who prove that it is a bound.
    """
    return math.log(n) - (n - 1) / n


def _weights(n: int, samples: int) -> np.ndarray:
    """Return [samples] the share of subsets of size n whose best is the i-th smallest, without large binomials."""
    weights = np.zeros(samples)
    weight = n / samples
    for below in range(samples - 1, n - 2, -1):  # number of smaller samples
        weights[below] = weight
        if below:
            weight *= (below - n + 1) / below
    return weights
