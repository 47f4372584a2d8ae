"""`trl-dpo-ext merge`: merge an adapter into the weights it was trained on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ._console import console


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("merge", help="merge an adapter into its base model, and measure the difference")
    command.add_argument("adapter", help="folder of a finished run")
    command.add_argument("output", help="folder for the merged model")
    command.add_argument(
        "--into",
        choices=["trained", "original"],
        default="trained",
        help="the weights that training saw, dequantized (default), or the base model's un-quantized ones",
    )
    command.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="of the merged weights"
    )
    command.add_argument("--base-model", help="where the base model is, if not where adapter_config.json says")
    command.add_argument("--prompts", type=Path, help="text file, one prompt a line, to compare the two models on")
    command.add_argument("--device", help="cpu or cuda; by default the GPU if there is one")
    command.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    from ..hub import MergeError, RunError, merge_adapter

    try:
        prompts = arguments.prompts and arguments.prompts.read_text(encoding="utf-8").splitlines()
        report = merge_adapter(
            arguments.adapter,
            arguments.output,
            into=arguments.into,
            dtype=arguments.dtype,
            base_model=arguments.base_model,
            prompts=prompts,
            device=arguments.device,
        )
    except (MergeError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console().print(describe(report), markup=False)
    console().print(f"Saved to {arguments.output}, with this measurement in merge.json.", markup=False)
    return 0


def describe(report: dict[str, Any]) -> str:
    """Return what a merge did to the model, in sentences."""
    found = report["difference"]
    lines = [
        f"Compared with the model that was trained, over {found['positions']} next tokens of {report['prompts']} "
        f"prompts: KL {found['kl_mean']:.2e} nats (largest {found['kl_max']:.2e}), largest difference of a logit "
        f"{found['logit_difference_max']:.3g}, the same most likely token in {found['same_top1']:.1%}."
    ]
    if report["into"] == "original" and report["quantization"] is not None:
        lines.insert(
            0,
            "Merged into un-quantized weights: this is not the model that was trained. The rounding errors of the "
            "quantized base, on top of which the adapter has learned, are gone.",
        )
    return "\n".join(lines)
