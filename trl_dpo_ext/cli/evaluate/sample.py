"""`eval sample`: completions into a file."""

from __future__ import annotations

import argparse

from .inputs import prompts_of, sampling_options
from .options import Evaluations, add_data, count, guarded, nonnegative


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("sample", help="sample completions into a file, to judge them any number of times")
    command.add_argument("model", help="folder of an adapter or a model, or Hub id")
    command.add_argument("output", help=".jsonl file to write")
    command.add_argument("--samples", type=count, default=1, help="samples per prompt (default: 1)")
    command.add_argument("--temperature", type=nonnegative, default=1.0, help="sampling temperature (default: 1)")
    command.add_argument("--vllm", action="store_true", help="sample with vLLM, which you must install yourself")
    add_data(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from .sources import by_prompt, completions, dataset_row, is_file, load_tokenizer, tokenized, write_jsonl
    from .vllm import vllm_model

    if is_file(arguments.model):
        raise ValueError(f"{arguments.model} is a file of samples; give a model.")
    placed = vllm_model(arguments.model) if arguments.vllm else None
    prompts = prompts_of(arguments, [arguments.model])
    options = sampling_options(arguments)
    if placed is not None:
        from ...evaluation.sampling.vllm_sampling import sample_with_vllm

        tokenizer = load_tokenizer(arguments.model)
        starts = tokenized(prompts, tokenizer, arguments.samples)
        del options["batch_size"]  # vLLM makes its own batches
        sampled = sample_with_vllm(
            tokenizer=tokenizer, prompts=starts, temperature=arguments.temperature, **placed, **options
        )
        found = by_prompt(sampled.completions, arguments.samples)
    else:
        found = completions(arguments.model, prompts, [arguments.temperature], samples=arguments.samples, **options)[
            arguments.temperature
        ]
    rows = [
        {"prompt": prompt, "completion": text, "temperature": arguments.temperature, **dataset_row(row)}
        for row, prompt, texts in zip(prompts.rows, prompts.texts, found, strict=True)
        for text in texts
    ]
    write_jsonl(arguments.output, rows)
    print(f"Saved {len(rows)} samples of {len(prompts.rows)} prompts to {arguments.output}.")
