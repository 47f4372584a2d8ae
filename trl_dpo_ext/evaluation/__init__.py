"""Whether training worked: rewards, judges, samples, sequence KL, win rates, frontiers, intervals.

Names are imported on first use, so that listing rewards or printing help doesn't load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Agreement",
    "BestOfN",
    "Comparison",
    "EndpointError",
    "Evaluation",
    "Frontier",
    "FrontierCallback",
    "FrontierEntry",
    "FrontierError",
    "FrontierPoint",
    "Interval",
    "Judge",
    "JudgeError",
    "Reference",
    "Reward",
    "RewardError",
    "Samples",
    "SequenceKL",
    "SignTest",
    "SpendingCapError",
    "TokenizedPrompt",
    "UnknownRewardError",
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
    "compare_runs",
    "comparison_table",
    "evaluate_policy",
    "frontier_table",
    "get_judge",
    "get_reward",
    "held_out_prompts",
    "judge_forms",
    "kl_bound",
    "list_judges",
    "list_rewards",
    "pareto_dominators",
    "prompt_text",
    "read_best_of_n",
    "read_frontier",
    "register_judge",
    "register_reward",
    "reward_forms",
    "reward_judge",
    "sample",
    "sequence_kl",
    "sign_test",
    "tokenized_prompt",
    "wilson",
    "win_rate",
    "win_rate_difference",
    "win_rate_of",
    "win_rate_table",
    "within_budgets",
    "write_budgets_csv",
    "write_frontier_csv",
]

if TYPE_CHECKING:
    from ..data.prompts import TokenizedPrompt, held_out_prompts, tokenized_prompt
    from ..data.rendering.prompt_rendering import prompt_text
    from .before_after import Comparison, Evaluation, compare, comparison_table, evaluate_policy
    from .best_of_n_curve import BestOfN, best_of_n, kl_bound
    from .frontier.best_of_n_file import read_best_of_n
    from .frontier.frontier_callback import FrontierCallback
    from .frontier.frontier_file import Frontier, FrontierError, FrontierPoint, read_frontier
    from .frontier.frontier_tables import budgets_table, frontier_table, write_budgets_csv, write_frontier_csv
    from .frontier.kl_budgets import WithinBudget, within_budgets
    from .frontier.run_comparison import FrontierEntry, compare_runs, pareto_dominators
    from .judge_agreement import Agreement, agreement, agreement_table, agreements
    from .judging.classifier import classifier
    from .judging.contracts import (
        EndpointError,
        Judge,
        JudgeError,
        Reward,
        RewardError,
        SpendingCapError,
        UnknownRewardError,
    )
    from .judging.judges import apply_judge, get_judge, judge_forms, list_judges, register_judge, reward_judge
    from .judging.rewards import apply_reward, get_reward, list_rewards, register_reward, reward_forms
    from .sampling.samples import Samples
    from .sampling.sequence_kl import Reference, SequenceKL, sequence_kl
    from .sampling.transformers_sampling import sample
    from .stats import Interval, SignTest, bootstrap_difference, bootstrap_mean, sign_test, wilson
    from .win_rates import WinRate, WinRateDifference, win_rate, win_rate_difference, win_rate_of, win_rate_table

# Module -> public names that it defines. No module directly in this folder may share a name with one of them.
_MODULES = {
    "..data.rendering.prompt_rendering": ("prompt_text",),
    "..data.prompts": (
        "TokenizedPrompt",
        "held_out_prompts",
        "tokenized_prompt",
    ),
    ".before_after": (
        "Comparison",
        "Evaluation",
        "compare",
        "comparison_table",
        "evaluate_policy",
    ),
    ".best_of_n_curve": (
        "BestOfN",
        "best_of_n",
        "kl_bound",
    ),
    ".frontier.best_of_n_file": ("read_best_of_n",),
    ".frontier.frontier_callback": ("FrontierCallback",),
    ".frontier.frontier_file": (
        "Frontier",
        "FrontierError",
        "FrontierPoint",
        "read_frontier",
    ),
    ".frontier.frontier_tables": (
        "budgets_table",
        "frontier_table",
        "write_budgets_csv",
        "write_frontier_csv",
    ),
    ".frontier.kl_budgets": (
        "WithinBudget",
        "within_budgets",
    ),
    ".frontier.run_comparison": (
        "FrontierEntry",
        "compare_runs",
        "pareto_dominators",
    ),
    ".judge_agreement": (
        "Agreement",
        "agreement",
        "agreement_table",
        "agreements",
    ),
    ".judging.classifier": ("classifier",),
    ".judging.contracts": (
        "EndpointError",
        "Judge",
        "JudgeError",
        "Reward",
        "RewardError",
        "SpendingCapError",
        "UnknownRewardError",
    ),
    ".judging.judges": (
        "apply_judge",
        "get_judge",
        "judge_forms",
        "list_judges",
        "register_judge",
        "reward_judge",
    ),
    ".judging.rewards": (
        "apply_reward",
        "get_reward",
        "list_rewards",
        "register_reward",
        "reward_forms",
    ),
    ".sampling.samples": ("Samples",),
    ".sampling.sequence_kl": (
        "Reference",
        "SequenceKL",
        "sequence_kl",
    ),
    ".sampling.transformers_sampling": ("sample",),
    ".stats": (
        "Interval",
        "SignTest",
        "bootstrap_difference",
        "bootstrap_mean",
        "sign_test",
        "wilson",
    ),
    ".win_rates": (
        "WinRate",
        "WinRateDifference",
        "win_rate",
        "win_rate_difference",
        "win_rate_of",
        "win_rate_table",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
