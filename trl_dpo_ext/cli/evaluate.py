"""`trl-dpo-ext eval`: samples, win rates, best-of-n, agreement of judges, frontiers of runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from ._console import console

MODEL = "folder of an adapter or a model, Hub id, or .jsonl file of samples (prompt, completion)"
SCORER = (
    "vader, a classifier or reward model (Hub id or folder), package.module:function, or endpoint:MODEL behind an "
    "OpenAI-compatible endpoint"
)
LABELS = {"first": 1.0, "second": 0.0, "tie": 0.5, None: None}
WORDS = {verdict: word for word, verdict in LABELS.items()}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("eval", help="say how good a model is: samples, win rate, best-of-n, judges")
    kinds = command.add_subparsers(title="evaluations", metavar="EVALUATION", required=True)

    sampling = kinds.add_parser("sample", help="sample completions into a file, to be judged as often as you like")
    sampling.add_argument("model", help="folder of an adapter or a model, or Hub id")
    sampling.add_argument("output", help=".jsonl file to write")
    sampling.add_argument("--samples", type=_count, default=1, help="of each prompt (default: 1)")
    sampling.add_argument("--temperature", type=_nonnegative, default=1.0, help="(default: 1)")
    _add_data(sampling)
    sampling.set_defaults(run=_guarded(_sample))

    winning = kinds.add_parser("win-rate", help="how often a judge prefers a model's completions")
    winning.add_argument("model", nargs="+", help=MODEL)
    winning.add_argument("--against", help="what they meet: the same kinds; by default the dataset's best completions")
    winning.add_argument("--judge", required=True, help=SCORER)
    winning.add_argument("--temperature", type=_nonnegative, nargs="+", default=[1.0], help="one or more (default: 1)")
    winning.add_argument("--pairs", metavar="FILE", help="write the judged pairs as .jsonl, for people and `agreement`")
    _add_data(winning)
    _add_endpoint(winning, "helpful (default), summary")
    _add_json(winning)
    winning.set_defaults(run=_guarded(_win_rate))

    best = kinds.add_parser("best-of-n", help="the reward of the best of n samples, for every n")
    best.add_argument("model", help=MODEL)
    best.add_argument("--reward", required=True, help=SCORER)
    best.add_argument("--samples", type=_count, default=16, help="of each prompt (default: 16)")
    best.add_argument("--temperature", type=_nonnegative, default=1.0, help="(default: 1)")
    _add_data(best)
    _add_endpoint(best, "score (default)")
    _add_json(best)
    best.set_defaults(run=_guarded(_best_of_n))

    agreeing = kinds.add_parser("agreement", help="how often judges agree, with each other and with people")
    agreeing.add_argument("pairs", help=".jsonl file of pairs: prompt, first, second, and columns of labels")
    agreeing.add_argument("--judge", action="append", default=[], help=f"{SCORER}; may be given several times")
    agreeing.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column that says first, second, tie or nothing; may be given several times",
    )
    _add_endpoint(agreeing, "helpful (default), summary")
    _add_json(agreeing)
    agreeing.set_defaults(run=_guarded(_agreement))

    reaching = kinds.add_parser("frontier", help="reward against KL of training runs, and which points are dominated")
    reaching.add_argument(
        "folder", metavar="RUN", nargs="+", help="output folder of a run trained with reward and frontier_steps"
    )
    reaching.add_argument(
        "--output", metavar="FOLDER", help="write frontier.png, frontier.csv and budgets.csv there; made if new"
    )
    reaching.add_argument("--baseline", metavar="METHOD", help="what other methods are compared with, for example dpo")
    reaching.add_argument(
        "--budgets", metavar="NATS", type=_nonnegative, nargs="+", default=[1, 2, 4, 8], help="of KL (default: 1 2 4 8)"
    )
    reaching.add_argument(
        "--best-of-n", metavar="FILE", help="draw this curve beside the runs: what `best-of-n --json FILE` wrote"
    )
    _add_json(reaching)
    reaching.set_defaults(run=_guarded(_frontier))


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", help="Hub id, folder or file of the dataset; not needed for files of samples")
    command.add_argument("--config", help="the dataset's configuration (subset)")
    command.add_argument("--split", default="test", help="(default: test)")
    command.add_argument("--converter", help="brings the rows into an accepted form, as `dataset_converter` does")
    command.add_argument("--prompts", type=_count, default=128, help="how many at most (default: 128)")
    command.add_argument(
        "--first", action="store_true", help="take the split's first prompts, as a recipe does, and draw none"
    )
    command.add_argument("--max-new-tokens", type=_count, default=64, help="length of a sample (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="of prompts and samples (default: 0)")
    command.add_argument("--batch-size", type=_count, default=32, help="prompts sampled at once (default: 32)")


def _add_endpoint(command: argparse.ArgumentParser, templates: str) -> None:
    group = command.add_argument_group("a model behind an endpoint", "The key is taken from OPENAI_API_KEY.")
    group.add_argument("--base-url", help="of the endpoint (default: OpenAI's)")
    group.add_argument("--template", help=f"{templates}, or the path of your own")
    group.add_argument("--cache", help="file of all answers, which go on from there (default: verdicts.jsonl)")
    group.add_argument("--cap-requests", type=_count, dest="max_requests", help="send no more requests than this")
    group.add_argument("--cap-tokens", type=_count, dest="max_tokens", help="ask nothing more after so many tokens")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - prints them and nothing else")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _nonnegative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _guarded(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            sys.path.insert(0, str(Path.cwd()))  # for functions of one's own, as recipes/train.py does
            _check_outputs(arguments)
            run(arguments)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return guarded


def _check_outputs(arguments: argparse.Namespace) -> None:
    for name in ("json", "output", "pairs"):
        path = getattr(arguments, name, None)
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: the folder {Path(path).absolute().parent} does not exist.")


def _sample(arguments: argparse.Namespace) -> None:
    from ._samples import completions, is_file, write_jsonl

    if is_file(arguments.model):
        raise ValueError(f"{arguments.model} is a file of samples; give a model.")
    prompts = _prompts(arguments, [arguments.model])
    found = completions(
        arguments.model, prompts, [arguments.temperature], samples=arguments.samples, **_sampling(arguments)
    )[arguments.temperature]
    rows = [
        {"prompt": prompt, "completion": text, "temperature": arguments.temperature}
        for prompt, texts in zip(prompts.texts, found, strict=True)
        for text in texts
    ]
    write_jsonl(arguments.output, rows)
    print(f"Saved {len(rows)} samples of {len(prompts.raw)} prompts to {arguments.output}.")


def _win_rate(arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from ..evaluation import win_rate, win_rate_difference, win_rate_table
    from ._samples import completions, is_file, write_jsonl

    (judge,) = _judges(arguments, [arguments.judge]).values()
    if len(set(arguments.model)) < len(arguments.model):
        raise ValueError("The same model is given twice. To see it meet itself, give it to --against.")
    sources = [*arguments.model, *filter(None, [arguments.against])]
    prompts = _prompts(arguments, sources)
    if arguments.against is None and prompts.own is None:
        raise ValueError("Say with --against what the samples meet, or give a dataset with --data.")
    # Files stay as they are whatever the temperature.
    temperatures = arguments.temperature if not all(map(is_file, sources)) else arguments.temperature[:1]
    met = {t: [[text] for text in prompts.own or []] for t in temperatures}
    if arguments.against is not None:
        # Another seed, or a model would meet its own samples.
        met = completions(
            arguments.against, prompts, temperatures, **{**_sampling(arguments), "seed": arguments.seed + 1}
        )
    rates, pairs = {}, []
    for model in arguments.model:
        for t, found in completions(model, prompts, temperatures, **_sampling(arguments)).items():
            firsts, seconds = [texts[0] for texts in found], [texts[0] for texts in met[t]]
            rates[model, t] = win_rate(judge, prompts.texts, firsts, seconds)
            rows = zip(prompts.texts, firsts, seconds, rates[model, t].verdicts, strict=True)
            facts = {"model": model, "temperature": None if is_file(model) else t}
            pairs += [{"prompt": p, "first": a, "second": b, "judge": WORDS[v], **facts} for p, a, b, v in rows]
    compared = {
        (one, other, t): win_rate_difference(rates[one, t], rates[other, t])
        for one, other in combinations(arguments.model, 2)
        for t in temperatures
        if len(prompts.raw) > 1
    }
    if arguments.pairs is not None:
        write_jsonl(arguments.pairs, pairs)
    against = arguments.against or "the dataset's best completions"
    report = {
        "judge": arguments.judge,
        "against": against,
        **_settings(arguments, prompts),
        "results": [{"model": m, "temperature": _of(m, t), **rate.as_dict()} for (m, t), rate in rates.items()],
        "comparisons": [
            {"first": one, "second": other, "temperature": t, **result.as_dict()}
            for (one, other, t), result in compared.items()
        ],
    }
    if _write(arguments, report):
        return
    shown = {(m, "-" if _of(m, t) is None else f"{t:g}"): rate for (m, t), rate in rates.items()}
    console().print(win_rate_table(shown, against))
    for (one, other, t), result in compared.items():
        d, test = result.difference, result.test
        console().print(
            Text(
                f"{other} - {one} at temperature {t:g}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]; better on "
                f"{test.second} prompts, worse on {test.first}, exact sign test p = {test.p_value:.3g}."
            ),
            soft_wrap=True,
        )


def _best_of_n(arguments: argparse.Namespace) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..evaluation import apply_reward, best_of_n, get_reward
    from ._samples import completions

    reward = get_reward(arguments.reward, **_endpoint(arguments, [arguments.reward]))
    prompts = _prompts(arguments, [arguments.model])
    if len(prompts.raw) < 2:
        raise ValueError(f"An interval needs at least two prompts, got {len(prompts.raw)}.")
    found = completions(
        arguments.model, prompts, [arguments.temperature], samples=arguments.samples, **_sampling(arguments)
    )[arguments.temperature]
    texts = [text for text in prompts.texts for _ in range(arguments.samples)]
    rewards = apply_reward(reward, texts, [completion for row in found for completion in row])
    n = arguments.samples
    curve = best_of_n([rewards[start : start + n] for start in range(0, len(rewards), n)])
    report = {
        "reward": arguments.reward,
        "model": arguments.model,
        "temperature": _of(arguments.model, arguments.temperature),
        **_settings(arguments, prompts),
        "curve": [point.as_dict() for point in curve],
    }
    if _write(arguments, report):
        return
    level = curve[0].reward.level
    table = Table(title=Text(f"Best of n, {len(prompts.raw)} prompts [{100 * level:g} % bootstrap interval]"))
    for column in ("n", "expected reward", "SE", "KL at most, nats"):
        table.add_column(column, justify="right")
    for point in curve:
        if point.n & (point.n - 1) == 0 or point.n == n:  # powers of two; JSON has all
            r = point.reward
            row = Text(f"{r.mean:.3f} [{r.low:.3f}, {r.high:.3f}]")
            table.add_row(str(point.n), row, f"{point.standard_error:.3f}", f"{point.kl_bound:.2f}")
    console().print(table)


def _agreement(arguments: argparse.Namespace) -> None:
    from ..evaluation import agreement_table, agreements, apply_judge
    from ._samples import read_jsonl

    names = [*arguments.label, *arguments.judge]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"Agreement needs at least two different judges or labels, got {', '.join(names) or 'none'}.")
    rows = read_jsonl(arguments.pairs, ("prompt", "first", "second"))
    verdicts: dict[str, Any] = {column: _labels(rows, column, arguments.pairs) for column in arguments.label}
    for name, judge in _judges(arguments, arguments.judge).items():
        verdicts[name] = apply_judge(judge, *([row[key] for row in rows] for key in ("prompt", "first", "second")))
    found = agreements(verdicts)
    report = {
        "pairs": len(rows),
        "agreements": [{"judges": list(names), **value.as_dict()} for names, value in found.items()],
    }
    if not _write(arguments, report):
        console().print(agreement_table(found))


def _frontier(arguments: argparse.Namespace) -> None:
    from ..evaluation import (
        budgets_table,
        frontier_table,
        gather,
        read_best_of_n,
        within_budgets,
        write_budgets_csv,
        write_frontier_csv,
    )
    from ..evaluation.plots import plot_frontier
    from ._runs import read_runs

    frontiers = read_runs(arguments.folder)
    placed = gather(frontiers)
    settings = next(iter(frontiers.values())).settings
    curve = [] if arguments.best_of_n is None else read_best_of_n(arguments.best_of_n, settings)
    within = within_budgets(placed, arguments.budgets, baseline=arguments.baseline)
    if arguments.output is not None:
        output = Path(arguments.output)
        output.mkdir(exist_ok=True)
        title = f"{settings['reward']}, {settings['prompts']} prompts, {settings['max_new_tokens']} new tokens"
        try:
            plot_frontier(placed, output / "frontier.png", title, curve)
        except ImportError as error:
            raise ValueError(str(error)) from error
        write_frontier_csv(placed, output / "frontier.csv")
        write_budgets_csv(within, output / "budgets.csv")
    report = {
        "settings": settings,
        "points": [row.as_dict() for row in placed],
        "best_of_n": [point.as_dict() for point in curve],
        "baseline": arguments.baseline,
        "within_budgets": [row.as_dict() for row in within],
    }
    if _write(arguments, report):
        return
    console().print(frontier_table(placed, settings))
    free = sum(row.dominated_by is None for row in placed)
    print(f"{free} of {len(placed)} points are not dominated (by their means; the intervals are not looked at).")
    console().print(budgets_table(within, arguments.baseline))
    if arguments.output is not None:
        print(f"Saved to {output}: frontier.png, frontier.csv, budgets.csv.")


def _labels(rows: list[dict[str, Any]], column: str, path: str) -> list[float | None]:
    if not any(column in row for row in rows):
        raise ValueError(f"{path} has no column {column!r}; it has: {', '.join(rows[0])}.")
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str | None) or row.get(column) not in LABELS:
            raise ValueError(f"{path}, row {number}: {column} is {row[column]!r}; expected first, second, tie or null.")
    return [LABELS[row.get(column)] for row in rows]


def _prompts(arguments: argparse.Namespace, sources: list[str]) -> Any:
    from ._samples import check_source, is_file, prompts_of_file, read_prompts

    for source in sources:
        check_source(source)
    if arguments.data is not None:
        return read_prompts(
            arguments.data,
            config=arguments.config,
            split=arguments.split,
            converter=arguments.converter,
            count=arguments.prompts,
            seed=None if arguments.first else arguments.seed,
        )
    file = next(filter(is_file, sources), None)
    if file is None:
        raise ValueError("Say with --data where the prompts come from.")
    return prompts_of_file(file, arguments.prompts)


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(arguments, name) for name in ("max_new_tokens", "seed", "batch_size")}
    return {**options, "progress": sys.stderr.isatty()}


def _judges(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    from ..evaluation import get_judge
    from ..evaluation.rewards import ENDPOINT

    settings = _endpoint(arguments, names)
    return {name: get_judge(name, **(settings if name.startswith(ENDPOINT) else {})) for name in names}


def _endpoint(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Return what is said about the endpoint, for judges or rewards that ask one; empty where none does."""
    from ..evaluation.rewards import ENDPOINT

    options = ("base_url", "template", "cache", "max_requests", "max_tokens")
    given = {name: getattr(arguments, name) for name in options if getattr(arguments, name) is not None}
    if any(name.startswith(ENDPOINT) for name in names):
        return {**given, "progress": sys.stderr.isatty()}
    if given:
        raise ValueError(f"Nothing here asks an endpoint (endpoint:MODEL), so there is no {', '.join(given)} to set.")
    return {}


def _of(model: str, temperature: float) -> float | None:
    from ._samples import is_file

    return None if is_file(model) else temperature


def _settings(arguments: argparse.Namespace, prompts: Any) -> dict[str, Any]:
    from ..evaluation.frontier import prompts_sha256

    return {
        "data": arguments.data,
        "prompts": len(prompts.raw),
        "prompts_sha256": prompts_sha256(prompts.texts),
        "max_new_tokens": arguments.max_new_tokens,
        "seed": arguments.seed,
    }


def _write(arguments: argparse.Namespace, report: dict[str, Any]) -> bool:
    """Write the report where it is wanted; whether that is all that is to be printed."""
    from ..record import versions, write_json

    report = {**report, "versions": versions()}
    if arguments.json == "-":
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif arguments.json is not None:
        write_json(arguments.json, report)
    return bool(arguments.json == "-")
