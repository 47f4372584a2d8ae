"""`trl-dpo-ext merge`: merges an adapter into the weights it was trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._console import Commands, console


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("merge", help="merge an adapter into its base model, and measure the difference")
    command.add_argument("adapter", help="folder of a finished run")
    command.add_argument("output", help="folder for the merged model")
    command.add_argument(
        "--into",
        choices=["trained", "original"],
        default="trained",
        help="merge into the dequantized weights that training saw (default), or into the base model's original ones",
    )
    command.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], default="float16", help="dtype of the merged weights"
    )
    command.add_argument(
        "--base-model", help="folder or Hub id of the base model, if adapter_config.json is out of date"
    )
    command.add_argument("--prompts", type=Path, help="text file with one prompt a line, to compare the two models on")
    command.add_argument(
        "--allowed-kl",
        type=float,
        metavar="NATS",
        help="largest mean KL between the trained and the merged model (default: by dtype, see docs/hub.md)",
    )
    command.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    command.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    from ..hub.merge import merge_adapter
    from ..hub.usage import describe_merge

    prompts = arguments.prompts and arguments.prompts.read_text(encoding="utf-8").splitlines()
    report = merge_adapter(
        arguments.adapter,
        arguments.output,
        into=arguments.into,
        dtype=arguments.dtype,
        base_model=arguments.base_model,
        prompts=prompts,
        allowed_kl=arguments.allowed_kl,
        device=arguments.device,
    )
    console().print(describe_merge(report), markup=False)
    console().print(f"Saved to {arguments.output}, with this measurement in merge.json.", markup=False)
    return 0
