"""`eval sample`: completions into a file."""

from __future__ import annotations

import argparse

from .inputs import prompts_of, sampling_options
from .options import Kinds, add_data, count, guarded, nonnegative


def add(kinds: Kinds) -> None:
    """Add the evaluation to the parser."""
    command = kinds.add_parser("sample", help="sample completions into a file, to be judged as often as you like")
    command.add_argument("model", help="folder of an adapter or a model, or Hub id")
    command.add_argument("output", help=".jsonl file to write")
    command.add_argument("--samples", type=count, default=1, help="of each prompt (default: 1)")
    command.add_argument("--temperature", type=nonnegative, default=1.0, help="(default: 1)")
    add_data(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from .._samples import completions, is_file, write_jsonl

    if is_file(arguments.model):
        raise ValueError(f"{arguments.model} is a file of samples; give a model.")
    prompts = prompts_of(arguments, [arguments.model])
    found = completions(
        arguments.model, prompts, [arguments.temperature], samples=arguments.samples, **sampling_options(arguments)
    )[arguments.temperature]
    rows = [
        {"prompt": prompt, "completion": text, "temperature": arguments.temperature}
        for prompt, texts in zip(prompts.texts, found, strict=True)
        for text in texts
    ]
    write_jsonl(arguments.output, rows)
    print(f"Saved {len(rows)} samples of {len(prompts.raw)} prompts to {arguments.output}.")
