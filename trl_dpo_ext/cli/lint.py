"""`trl-dpo-ext lint`: check a preference dataset before training on it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._console import Commands, console

if TYPE_CHECKING:
    from ..data.lint import Report


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "lint",
        help="check a preference dataset before training on it",
        epilog="Exit code: 1 if there are findings at the severity of --fail-on or worse, 0 otherwise, 2 for a mistake "
        "on the command line. Row numbers count from 0.",
    )
    command.add_argument("dataset", help="Hub id, folder, or .json, .jsonl(.gz), .csv or .parquet file")
    command.add_argument("--config", help="the dataset's configuration (subset)")
    command.add_argument(
        "--split", action="append", metavar="NAME", help="check only this split; repeat it for several"
    )
    command.add_argument(
        "--converter", metavar="NAME", help="convert the rows first, like `dataset_converter` in a recipe"
    )
    command.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="COLUMN=NAME",
        help="other names for columns, like `columns` in a recipe: question=prompt; note= leaves a column out",
    )
    command.add_argument("--model", help="Hub id or folder: also check with its tokenizer and chat template")
    command.add_argument(
        "--max-length", type=_positive, metavar="TOKENS", help="report what training with this max_length cuts off"
    )
    command.add_argument(
        "--show", type=int, metavar="N", help="show row N as it is trained: what is scored is marked (needs --model)"
    )
    command.add_argument("--output", metavar="FILE", help="write the converted rows to a .jsonl or .parquet file")
    command.add_argument("--json", metavar="FILE", help="write all findings as JSON; - prints them and nothing else")
    command.add_argument("--plot", metavar="FILE", help="draw the lengths of best, worst and all responses")
    command.add_argument(
        "--fail-on",
        choices=["error", "warning", "never"],
        default="error",
        help="exit with code 1 at findings of this severity or worse (default: error)",
    )
    command.set_defaults(run=_lint)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _lint(arguments: argparse.Namespace) -> int:
    _check_arguments(arguments)
    tokenizer, generation_config = _load_tokenizer(arguments.model) if arguments.model else (None, None)
    splits, report = _report(arguments, tokenizer, generation_config)
    if arguments.json == "-":
        print(json.dumps(_as_dict(report, arguments), indent=2, ensure_ascii=False))
    else:
        _show(report)
    _write(report, arguments)
    if arguments.show is not None:
        _show_row(splits, tokenizer, arguments)
    if arguments.output is not None:
        _write_rows(splits, arguments)
    return int(arguments.fail_on != "never" and bool(report.at_least(arguments.fail_on)))


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.max_length is not None and arguments.model is None:
        raise ValueError("--max-length counts tokens, so it needs a tokenizer: add --model.")
    if arguments.show is not None and arguments.model is None:
        raise ValueError("--show decodes tokens, so it needs a tokenizer: add --model.")
    if arguments.output is not None and Path(arguments.output).suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--output {arguments.output}: name a .jsonl or a .parquet file.")
    for option in ("json", "plot", "output"):
        path = getattr(arguments, option)
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"--{option} {path}: the folder {Path(path).absolute().parent} does not exist.")
    if arguments.plot is not None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("--plot needs matplotlib: pip install 'trl-dpo-ext[docs]'.") from error
        known = Figure().canvas.get_supported_filetypes()
        kind = Path(arguments.plot).suffix.lstrip(".")
        if kind not in known:
            raise ValueError(f"--plot {arguments.plot}: can't write a {kind!r} picture. Known: {', '.join(known)}.")


def _report(arguments: argparse.Namespace, tokenizer: Any, generation_config: Any) -> tuple[dict[str, Any], Report]:
    from ..data import DataError, FaultReason, get_converter, load_splits, map_columns
    from ..data.column_names import parse_column_names
    from ..data.lint import Finding, Report, lint_splits
    from ..registry import did_you_mean

    if arguments.converter is not None:
        get_converter(arguments.converter)
    names = parse_column_names(arguments.columns)
    try:
        splits = load_splits(arguments.dataset, config=arguments.config)
    except DataError as error:
        if error.reason is not FaultReason.UNREADABLE_FILE:
            raise
        return {}, Report({}, [Finding(error.reason.check_id, "", 0, [], str(error))])
    for name in arguments.split or ():
        if name not in splits:
            raise ValueError(
                f"{arguments.dataset} has no split {name!r}.{did_you_mean(name, splits)} It has: {', '.join(splits)}."
            )
    splits = {name: map_columns(splits[name], names, name=name) for name in arguments.split or splits}
    report = lint_splits(
        splits,
        tokenizer=tokenizer,
        generation_config=generation_config,
        max_length=arguments.max_length,
        converter=arguments.converter,
        progress=sys.stderr.isatty(),
    )
    return splits, report


def _one_split(splits: dict[str, Any], option: str) -> tuple[str, Any]:
    if len(splits) != 1:
        raise ValueError(f"{option} is for one split; choose it with --split: {', '.join(splits)}.")
    return next(iter(splits.items()))


def _converted(splits: dict[str, Any], arguments: argparse.Namespace, option: str) -> tuple[str, Any]:
    from ..data import convert_dataset
    from ..data.mixture import separate_forms

    name, split = _one_split(splits, option)
    if arguments.converter is not None:
        return name, convert_dataset(split, arguments.converter, name=name, invalid_rows="drop")
    return name, separate_forms(split, name=name)


def _show_row(splits: dict[str, Any], tokenizer: Any, arguments: argparse.Namespace) -> None:
    from ..data.lint.row_view import row_as_trained

    name, split = _one_split(splits, "--show")
    if not 0 <= arguments.show < len(split):
        raise ValueError(f"--show {arguments.show}: the split {name!r} has the rows 0 to {len(split) - 1}.")
    lines = row_as_trained(
        split, arguments.show, tokenizer, name=name, converter=arguments.converter, max_length=arguments.max_length
    )
    # With `--json -`, standard output holds the report alone.
    print(*lines, sep="\n", file=sys.stderr if arguments.json == "-" else sys.stdout)


def _write_rows(splits: dict[str, Any], arguments: argparse.Namespace) -> None:
    from ..data import EVERY_ROW, format_dataset

    name, split = _converted(splits, arguments, "--output")
    total = len(splits[name])
    rows = format_dataset(split, name=name, invalid_rows="drop", reads=EVERY_ROW).remove_columns("row")
    path = Path(arguments.output)
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    else:
        with path.open("w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    left_out = f"; left out {total - len(rows):,}, which can't be read" if len(rows) < total else ""
    print(f"Wrote {len(rows):,} of {total:,} rows to {path}{left_out}.", file=sys.stderr)


def _load_tokenizer(model: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {model}: its tokenizer can't be loaded. {error}") from error
    try:
        return tokenizer, GenerationConfig.from_pretrained(model)
    except (OSError, ValueError):  # many folders have none
        return tokenizer, None


def _as_dict(report: Report, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "dataset": arguments.dataset,
        "model": arguments.model,
        "max_length": arguments.max_length,
        **report.as_dict(),
    }


def _write(report: Report, arguments: argparse.Namespace) -> None:
    from ..data.lint import plot_lengths
    from ..record import write_json

    if arguments.json not in (None, "-"):
        write_json(arguments.json, _as_dict(report, arguments))
    if arguments.plot is not None:
        plot_lengths(report, arguments.plot, title=arguments.dataset)


def _show(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..data.lint.lengths import length_sentence

    out = console()
    for name, rows in report.rows.items():
        split = report.splits.get(name)
        lengths = f"; {length_sentence(split.lengths, split.unit)}" if split else ""
        out.print(Text(f"{name}: {rows:,} rows{lengths}."), soft_wrap=True)
        if name in report.forms:
            out.print(Text(f"  read as {report.forms[name]}"), soft_wrap=True)
    if not report.findings:
        out.print("No findings.")
        return
    colors = {"error": "red", "warning": "yellow", "info": "cyan"}
    table = Table(
        "severity", "finding", "split", "count", "rows", "what", box=None, pad_edge=False, header_style="bold"
    )
    for finding in report.findings:
        severity = Text(finding.severity, style=colors[finding.severity])
        cells = (finding.id, finding.split, f"{finding.count:,}", finding.first_rows, finding.note)
        table.add_row(severity, *(Text(cell) for cell in cells))
    out.print()
    out.print(table)
    out.print(Text("\nWhat to do", style="bold"))
    advice = Table(box=None, pad_edge=False, show_header=False)
    for id, what_to_do in {finding.id: finding.advice for finding in report.findings}.items():
        advice.add_row(Text(id), Text(what_to_do))
    out.print(advice)
