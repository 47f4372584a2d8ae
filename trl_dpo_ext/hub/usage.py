"""What people do with a trained model: the code that loads it, and what a merge has made of it, in sentences."""

from __future__ import annotations

from typing import Any

from .run_folder import Run, RunError

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank takes


def loading(run: Run, base: str, base_revision: str | None, repo: str) -> list[tuple[str, str]]:
    """Return headings, each with the code that loads the model that way."""
    if not run.adapter:
        return [
            (
                "With transformers:",
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'model = AutoModelForCausalLM.from_pretrained("{repo}")\n'
                f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
            ),
            ("With vLLM:", f"vllm serve {repo}"),
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
        ("With PEFT:", code(f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}"{option})')),
        (
            "Merged, as one plain model (`trl-dpo-ext` measures how near that is to the model that was trained):",
            f"trl-dpo-ext merge FOLDER_OF_THIS_REPOSITORY merged --base-model {base}",
        ),
        (
            "To train on from it in TRL:",
            code(
                f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}", is_trainable=True{option})\n'
                "trainer = DPOTrainer(model=model, ...)  # or trl_dpo_ext.PreferenceTrainer",
                "from trl import DPOTrainer",
            ),
        ),
    ]
    if not _merge_first(run):
        rank = next((rank for rank in _VLLM_RANKS if rank >= run.adapter.get("r", 8)), _VLLM_RANKS[-1])
        quantization = " --quantization bitsandbytes" if quantized else ""
        revision = f" --revision {base_revision}" if base_revision else ""
        found.append(
            (
                "With vLLM:",
                f"vllm serve {base}{revision}{quantization} --enable-lora --max-lora-rank {rank} "
                f"--lora-modules {repo.split('/')[-1]}={repo}",
            )
        )
    return found


def notes(run: Run) -> list[str]:
    """Return what somebody who loads it has to know."""
    found = []
    if run.adapter and _quantization(run):
        found.append(
            "The base model was quantized in training, and the adapter has learned on top of its rounding errors: on "
            "an un-quantized base it is another model."
        )
    if run.adapter and (reason := _merge_first(run)):
        found.append(f"vLLM's LoRA loading doesn't take {reason}: merge the adapter first.")
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
