"""What somebody may do with a finished run: commands that work as they stand, but for what stands in capitals."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hub.pushed_files import hub_id


def next_commands(output: Path, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a purpose and a command for each step that may follow.

    Args:
        output: the run's folder.
        settings: its recipe.
    """
    folder, found = str(output), []
    if data := settings.get("dataset_name"):
        sample = ["eval", "sample", folder, str(output / "samples.jsonl"), "--data", str(data)]
        for option, name in (("--config", "dataset_config"), ("--converter", "dataset_converter")):
            sample += [option, str(settings[name])] if settings.get(name) else []
        found.append(("samples, for `eval win-rate` and its judges", sample))
    if settings.get("use_peft"):
        # It compares the two models on the prompts of the run's samples, if there are any.
        prompts = [] if settings.get("reward") else ["--prompts", "FILE"]
        found.append(("one model without an adapter", ["merge", folder, f"{folder}-merged", *prompts]))
    base = settings.get("hub_base_model") or settings.get("model_name_or_path")
    known = base is not None and hub_id(str(base))
    found.append(("to the Hub", ["push", folder, "OWNER/NAME", *([] if known else ["--base-model", "OWNER/BASE"])]))
    return [(purpose, shlex.join(["trl-dpo-ext", *command])) for purpose, command in found]
