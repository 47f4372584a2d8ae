"""`eval best-of-n`: the reward of the best of n samples."""

from __future__ import annotations

import argparse
import sys

from ...evaluation import reward_forms
from .._console import console
from .inputs import endpoint_options, prompts_of, sampling_options
from .json_output import settings, temperature_of, write_report
from .options import MODEL, Evaluations, add_data, add_endpoint, add_json, count, guarded, nonnegative


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("best-of-n", help="the reward of the best of n samples, for every n")
    command.add_argument("model", help=MODEL)
    command.add_argument("--reward", required=True, help=reward_forms())
    command.add_argument("--samples", type=count, default=16, help="samples per prompt (default: 16)")
    command.add_argument("--temperature", type=nonnegative, default=1.0, help="sampling temperature (default: 1)")
    add_data(command)
    add_endpoint(command, "score (default)")
    add_json(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from rich.table import Table
    from rich.text import Text

    from ...evaluation import apply_reward, best_of_n, get_reward
    from .sources import completions

    reward = get_reward(arguments.reward, **endpoint_options(arguments, [arguments.reward]))
    prompts = prompts_of(arguments, [arguments.model])
    if len(prompts.rows) < 2:
        raise ValueError(f"An interval needs at least two prompts, got {len(prompts.rows)}.")
    found = completions(
        arguments.model, prompts, [arguments.temperature], samples=arguments.samples, **sampling_options(arguments)
    )[arguments.temperature]
    texts = [text for text in prompts.texts for _ in range(arguments.samples)]
    print(f"Scoring {len(texts)} samples with {arguments.reward}.", file=sys.stderr, flush=True)
    rewards = apply_reward(reward, texts, [completion for row in found for completion in row])
    n = arguments.samples
    curve = best_of_n([rewards[start : start + n] for start in range(0, len(rewards), n)])
    report = {
        "reward": arguments.reward,
        "model": arguments.model,
        "temperature": temperature_of(arguments.temperature, arguments.model),
        **settings(arguments, prompts),
        "curve": [point.as_dict() for point in curve],
    }
    if write_report(arguments, report):
        return
    level = curve[0].reward.level
    table = Table(title=Text(f"Best of n, {len(prompts.rows)} prompts [{100 * level:g} % bootstrap interval]"))
    for column in ("n", "expected reward", "SE", "KL at most, nats"):
        table.add_column(column, justify="right")
    for point in curve:
        if point.n & (point.n - 1) == 0 or point.n == n:  # powers of two; JSON has all
            r = point.reward
            row = Text(f"{r.mean:.3f} [{r.low:.3f}, {r.high:.3f}]")
            table.add_row(str(point.n), row, f"{point.standard_error:.3f}", f"{point.kl_bound:.2f}")
    console().print(table)
