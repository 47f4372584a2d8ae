"""`eval win-rate`: how often a judge prefers a model's completions."""

from __future__ import annotations

import argparse
import sys
from itertools import combinations

from ...evaluation import judge_forms
from .._console import console
from .inputs import get_judges, prompts_of, sampling_options
from .json_output import settings, temperature_of, write_report
from .labels import WORDS
from .options import MODEL, Evaluations, add_data, add_endpoint, add_json, guarded, nonnegative


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("win-rate", help="how often a judge prefers a model's completions")
    command.add_argument("model", nargs="+", help=MODEL)
    command.add_argument("--against", help="opponent, in the same forms (default: the dataset's best completions)")
    command.add_argument("--judge", required=True, help=judge_forms())
    command.add_argument(
        "--temperature",
        type=nonnegative,
        nargs="+",
        default=[1.0],
        help="one or more (default: 1)",
    )
    command.add_argument("--pairs", metavar="FILE", help="write the judged pairs as .jsonl, for `eval agreement`")
    add_data(command)
    add_endpoint(command, "helpful (default), summary")
    add_json(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from ...evaluation import win_rate, win_rate_difference, win_rate_table
    from .sources import completions, is_file, write_jsonl

    (judge,) = get_judges(arguments, [arguments.judge]).values()
    if len(set(arguments.model)) < len(arguments.model):
        raise ValueError("The same model is given twice. To see it meet itself, give it to --against.")
    opponent = [] if arguments.against is None else [arguments.against]
    sources = [*arguments.model, *opponent]
    prompts = prompts_of(arguments, sources)
    if arguments.against is None and prompts.own is None:
        raise ValueError("Say with --against what the samples meet, or give a dataset with --data.")
    # Files don't depend on the temperature.
    temperatures = arguments.temperature if not all(map(is_file, sources)) else arguments.temperature[:1]
    met = {t: [[text] for text in prompts.own or []] for t in temperatures}
    if arguments.against is not None:
        # With the same seed, a model would meet its own samples.
        met = completions(
            arguments.against, prompts, temperatures, **{**sampling_options(arguments), "seed": arguments.seed + 1}
        )
    rates, pairs = {}, []
    for model in arguments.model:
        for t, found in completions(model, prompts, temperatures, **sampling_options(arguments)).items():
            firsts, seconds = [texts[0] for texts in found], [texts[0] for texts in met[t]]
            print(f"Judging {len(firsts)} pairs of {model} with {arguments.judge}.", file=sys.stderr, flush=True)
            rates[model, t] = win_rate(judge, prompts.texts, firsts, seconds)
            rows = zip(prompts.texts, firsts, seconds, rates[model, t].verdicts, strict=True)
            facts = {"model": model, "temperature": temperature_of(t, model, *opponent)}
            pairs += [{"prompt": p, "first": a, "second": b, "judge": WORDS[v], **facts} for p, a, b, v in rows]
    compared = {
        (one, other, t): win_rate_difference(rates[one, t], rates[other, t])
        for one, other in combinations(arguments.model, 2)
        for t in temperatures
        if len(prompts.rows) > 1
    }
    if arguments.pairs is not None:
        write_jsonl(arguments.pairs, pairs)
    against = arguments.against or "the dataset's best completions"
    report = {
        "judge": arguments.judge,
        "against": against,
        **settings(arguments, prompts),
        "results": [
            {"model": m, "temperature": temperature_of(t, m, *opponent), **rate.as_dict()}
            for (m, t), rate in rates.items()
        ],
        "comparisons": [
            {
                "first": one,
                "second": other,
                "temperature": temperature_of(t, one, other, *opponent),
                **result.as_dict(),
            }
            for (one, other, t), result in compared.items()
        ],
    }
    if write_report(arguments, report):
        return
    shown = {(m, "-" if temperature_of(t, m, *opponent) is None else f"{t:g}"): rate for (m, t), rate in rates.items()}
    console().print(win_rate_table(shown, against))
    for (one, other, t), result in compared.items():
        d, test = result.difference, result.test
        where = "" if temperature_of(t, one, other, *opponent) is None else f" at temperature {t:g}"
        console().print(
            Text(
                f"{other} - {one}{where}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]; better on "
                f"{test.second} prompts, worse on {test.first}, exact sign test p = {test.p_value:.3g}."
            ),
            soft_wrap=True,
        )
