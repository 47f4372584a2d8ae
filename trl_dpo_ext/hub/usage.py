"""Text of the card: the code that loads a model, notes on it, and the result of a merge in sentences."""

from __future__ import annotations

import json
import shlex
from typing import Any

from .._compat.vllm import LORA_RANKS, lora_rank
from .run_folder import Run, RunError


def loading(run: Run, base: str, base_revision: str | None, repo: str) -> list[tuple[str, str]]:
    """Return pairs of a heading and the code that loads the model that way."""
    name = json.dumps(repo)
    if not run.adapter:
        return [
            (
                "With transformers:",
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f"model = AutoModelForCausalLM.from_pretrained({name})\n"
                f"tokenizer = AutoTokenizer.from_pretrained({name})",
            ),
            ("With vLLM:", f"vllm serve {shlex.quote(repo)}"),
        ]
    quantized = _quantization(run)
    imports, prepare, option = ["from peft import AutoPeftModelForCausalLM"], "", ""
    if quantized:
        imports.append("from transformers import BitsAndBytesConfig")
        settings = ", ".join(f"{name}={value!r}" for name, value in quantized.items())
        prepare = f"quantization = BitsAndBytesConfig({settings})\n"
        option = ", quantization_config=quantization"

    def code(body: str, *further: str) -> str:
        return "\n".join([*imports, *further, "", prepare + body])

    found = [
        ("With PEFT:", code(f"model = AutoPeftModelForCausalLM.from_pretrained({name}{option})")),
        (
            "Merged, as one plain model (`trl-dpo-ext` measures how close it is to the model that was trained):",
            f"trl-dpo-ext merge FOLDER_OF_THIS_REPOSITORY merged --base-model {shlex.quote(base)}",
        ),
        (
            "To continue training in TRL:",
            code(
                f"model = AutoPeftModelForCausalLM.from_pretrained({name}, is_trainable=True{option})\n"
                "trainer = DPOTrainer(model=model, ...)  # or trl_dpo_ext.PreferenceTrainer",
                "from trl import DPOTrainer",
            ),
        ),
    ]
    if not _merge_first(run):
        rank = lora_rank(run.adapter.get("r") or 8) or LORA_RANKS[-1]
        quantization = " --quantization bitsandbytes" if quantized else ""
        revision = f" --revision {shlex.quote(base_revision)}" if base_revision else ""
        found.append(
            (
                "With vLLM:",
                f"vllm serve {shlex.quote(base)}{revision}{quantization} --enable-lora --max-lora-rank {rank} "
                f"--lora-modules {shlex.quote(repo.split('/')[-1] + '=' + repo)}",
            )
        )
    return found


def notes(run: Run) -> list[str]:
    """Return what anyone who loads the model must know."""
    found = []
    if run.adapter and _quantization(run):
        found.append(
            "Training quantized the base model, and the adapter learned to work with its rounding errors: on an "
            "unquantized base it is another model."
        )
    if run.adapter and (reason := _merge_first(run)):
        found.append(f"vLLM can't load LoRA adapters with {reason}: merge the adapter first.")
    return found


def _quantization(run: Run) -> dict[str, object]:
    try:
        quantization = run.trained_base().quantization or {}
    except RunError:
        return {}
    keys = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    return {key: quantization[key] for key in keys if quantization.get(key)}


def _merge_first(run: Run) -> str | None:
    if run.adapter.get("use_dora"):
        return "DoRA"
    if run.adapter.get("modules_to_save"):
        return "`modules_to_save`"
    return "trained biases" if run.adapter.get("bias", "none") != "none" else None


def describe_merge(report: dict[str, Any]) -> str:
    """Return the result of a merge in sentences."""
    found = report["difference"]
    lines = [
        f"Compared with the model that was trained, over {found['positions']} next tokens of {report['prompts']} "
        f"prompts: KL {found['kl_mean']:.2e} nats (largest {found['kl_max']:.2e}), largest difference of a logit "
        f"{found['logit_difference_max']:.3g}, the same most likely token in {found['same_top1']:.1%}."
    ]
    if report["into"] == "original" and report["quantization"] is not None:
        lines.insert(
            0,
            "Merged into unquantized weights: this is not the model that was trained. The adapter learned to work with "
            "the rounding errors of the quantized base, and they are gone.",
        )
    return "\n".join(lines)
