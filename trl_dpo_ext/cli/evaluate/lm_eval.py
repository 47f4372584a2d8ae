"""`eval lm-eval`: benchmarks of EleutherAI's lm-evaluation-harness, on the model as it was trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .hand_over import add_program_options, run_program
from .options import Evaluations, guarded


def add(evaluations: Evaluations) -> None:
    """Add the evaluation to the parser."""
    command = evaluations.add_parser("lm-eval", help="hand over to lm-evaluation-harness: IFEval, GSM8K, MMLU, ...")
    command.add_argument("model", help="folder of an adapter or a model, or Hub id")
    command.add_argument("--tasks", required=True, help="tasks of the harness, separated by commas: ifeval,gsm8k")
    command.add_argument("--batch-size", default="auto", help="batch size of the harness (default: auto)")
    command.add_argument("--output", help="folder for its results")
    add_program_options(command)
    command.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> None:
    command = ["lm_eval", "--model", "hf", "--model_args", model_arguments(arguments.model)]
    command += ["--tasks", arguments.tasks, "--batch_size", arguments.batch_size]
    if has_chat_template(arguments.model):
        command.append("--apply_chat_template")
    if arguments.output:
        command += ["--output_path", arguments.output]
    run_program(command, '"lm-eval[hf]"', arguments)


def model_arguments(source: str) -> str:
    """Return the harness's `--model_args`. The base of an adapter is loaded, and quantized, as in training.

    Args:
        source: folder of an adapter or model, or Hub id.

    Raises:
        RunError: nothing says how the base of an adapter was loaded.
        ValueError: a value holds a comma or "=", which the harness would read as the next argument.
    """
    from ...hub.run_folder import read_run
    from .sources import is_adapter

    given: dict[str, object] = {"pretrained": source}
    if is_adapter(source):
        base = read_run(source).trained_base()
        given = {"pretrained": base.model, "revision": base.revision, "peft": source, "tokenizer": source}
        given |= {"dtype": None if base.dtype == "auto" else base.dtype}
        given |= {
            name: value for name, value in (base.quantization or {}).items() if not isinstance(value, dict | list)
        }
    known = {name: str(value) for name, value in given.items() if value is not None and value is not False}
    for name, value in known.items():
        if "," in value or "=" in value:
            raise ValueError(f"{name}: {value!r} holds a comma or an equals sign, which lm-eval can't take. Rename it.")
    return ",".join(f"{name}={value}" for name, value in known.items())


def has_chat_template(source: str) -> bool:
    """Return whether a folder's tokenizer has a chat template. Of a model on the Hub, nothing is known: False."""
    folder = Path(source)
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))
