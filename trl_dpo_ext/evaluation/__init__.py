"""Whether training worked: rewards, sampling, sequence KL, intervals, and the table and record made of them."""

from .kl import Reference, SequenceKL, sequence_kl
from .report import Comparison, Evaluation, compare, comparison_table, evaluate_policy
from .rewards import Reward, RewardError, apply_reward, get_reward
from .sampling import Samples, sample, sequence_logps
from .stats import Interval, bootstrap_difference, bootstrap_mean

__all__ = [
    "Comparison",
    "Evaluation",
    "Interval",
    "Reference",
    "Reward",
    "RewardError",
    "Samples",
    "SequenceKL",
    "apply_reward",
    "bootstrap_difference",
    "bootstrap_mean",
    "compare",
    "comparison_table",
    "evaluate_policy",
    "get_reward",
    "sample",
    "sequence_kl",
    "sequence_logps",
]
