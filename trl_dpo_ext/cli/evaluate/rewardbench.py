"""`eval rewardbench`: the accuracy of a model's implicit reward (its log-ratio to the reference) on RewardBench."""

from __future__ import annotations

import argparse

from .hand_over import add_program_options, run_program
from .options import Evaluations, guarded


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("rewardbench", help="hand over to RewardBench: accuracy of the implicit reward")
    command.add_argument("model", help="folder of a model (`trl-dpo-ext merge` makes one of an adapter), or Hub id")
    command.add_argument("--reference", required=True, help="the reference: folder or Hub id of the starting model")
    command.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16", "float32"])
    command.add_argument("--batch-size", type=int, default=8)
    add_program_options(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    from .sources import is_adapter

    for source in (arguments.model, arguments.reference):
        if is_adapter(source):
            raise ValueError(
                f"{source} is an adapter, and RewardBench loads whole models. Merge it first: "
                f"trl-dpo-ext merge {source} FOLDER"
            )
    command = ["rewardbench", f"--model={arguments.model}", f"--ref_model={arguments.reference}", "--not_quantized"]
    command += [f"--torch_dtype={arguments.dtype}", f"--batch_size={arguments.batch_size}"]
    run_program(command, "rewardbench", arguments)
