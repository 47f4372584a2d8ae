"""Whether training worked: rewards, sampling, sequence KL, intervals, and the table and record made of them."""

from .agreement import Agreement, agreement, agreement_table, agreements
from .best_of_n import BestOfN, best_of_n, kl_bound
from .budgets import WithinBudget, budgets_table, within_budgets, write_budgets_csv
from .classifier import classifier
from .dominance import PlacedPoint, dominating, frontier_table, gather, read_best_of_n, write_frontier_csv
from .frontier import Frontier, FrontierCallback, FrontierError, FrontierPoint, read_frontier
from .judges import Judge, JudgeError, apply_judge, get_judge, reward_judge
from .kl import Reference, SequenceKL, sequence_kl
from .report import Comparison, Evaluation, compare, comparison_table, evaluate_policy
from .rewards import Reward, RewardError, apply_reward, get_reward
from .sampling import Samples, prompt_text, sample, sequence_logps
from .stats import Interval, SignTest, bootstrap_difference, bootstrap_mean, sign_test, wilson
from .win_rate import WinRate, WinRateDifference, win_rate, win_rate_difference, win_rate_of, win_rate_table

__all__ = [
    "Agreement",
    "BestOfN",
    "Comparison",
    "Evaluation",
    "Frontier",
    "FrontierCallback",
    "FrontierError",
    "FrontierPoint",
    "Interval",
    "Judge",
    "JudgeError",
    "PlacedPoint",
    "Reference",
    "Reward",
    "RewardError",
    "Samples",
    "SequenceKL",
    "SignTest",
    "WinRate",
    "WinRateDifference",
    "WithinBudget",
    "agreement",
    "agreement_table",
    "agreements",
    "apply_judge",
    "apply_reward",
    "best_of_n",
    "bootstrap_difference",
    "bootstrap_mean",
    "budgets_table",
    "classifier",
    "compare",
    "comparison_table",
    "dominating",
    "evaluate_policy",
    "frontier_table",
    "gather",
    "get_judge",
    "get_reward",
    "kl_bound",
    "prompt_text",
    "read_best_of_n",
    "read_frontier",
    "reward_judge",
    "sample",
    "sequence_kl",
    "sequence_logps",
    "sign_test",
    "wilson",
    "win_rate",
    "win_rate_difference",
    "win_rate_of",
    "win_rate_table",
    "within_budgets",
    "write_budgets_csv",
    "write_frontier_csv",
]
