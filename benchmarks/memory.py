"""Measures the GPU memory of QLoRA steps of 6-8B models, ours and TRL's, and compares it with the estimate.

    python benchmarks/memory.py --cases gpt-j-6b llama-3.1-8b-k4 --caps 12 24
    python benchmarks/memory.py --cases tiny          # runs anywhere, to show that the script works

The script builds the real architectures with random weights, quantizes them to NF4 layer by layer, and takes ten
optimizer steps on random token ids of full length. Each side runs in a fresh process with a memory cap. The results
hold the peaks of torch's allocator (allocated and reserved), seconds per step, tokens per second, and the estimate of
`trl-dpo-ext memory`. TRL gets K > 2 responses as all their pairs, one pair per micro-batch. Results are added to
benchmarks/results/, one file per device. On a CPU the peak is the process's resident memory, which the estimate doesn't
predict.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from side_by_side import GPU, RESULTS, ROOT, Stopwatch, TokenIdsDPOTrainer, as_pairs, no_tokenizer, peak_resident_gib
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PrinterCallback,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert
from trl import DPOConfig

from trl_dpo_ext import PreferenceConfig, PreferenceTrainer
from trl_dpo_ext.memory import Setup, Shape, estimate, explain_out_of_memory, load_model_config
from trl_dpo_ext.record import hardware, versions, write_json

ACCELERATE = ROOT / "recipes" / "accelerate"
STRATEGIES = {"single": None, "fsdp2": "fsdp2_qlora.yaml", "zero3": "zero3.yaml"}
VOCABULARY = 1000  # of the random token ids


@dataclass(frozen=True)
class Case:
    """A model and the longest rows of its recipe."""

    model: str
    shape: Shape
    loss: str = "sigmoid"


def case(model: str, responses: int, length: int, loss: str = "sigmoid") -> Case:
    return Case(model, Shape(1, responses, length // 2, length - length // 2), loss)


CASES = {
    "tiny": case("tiny", 3, 64, "plackett_luce"),
    "gpt-j-6b": case("gpt-j-6b", 2, 1024),
    "pythia-6.9b": case("pythia-6.9b", 2, 1024),
    "llama-3.1-8b": case("llama-3.1-8b", 2, 2048),
    "llama-3.1-8b-k4": case("llama-3.1-8b", 4, 2048, "plackett_luce"),
    "qwen3-8b": case("qwen3-8b", 2, 2048),
    "qwen3-8b-k4": case("qwen3-8b", 4, 2048, "plackett_luce"),
}


def model_config(name: str) -> Any:
    if name != "tiny":
        return load_model_config(name)
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def setup_of(case: Case, strategy: str, output_dir: str) -> Setup:
    """Return a case with the QLoRA settings of the recipes."""
    sharded = strategy != "single"
    dtype = torch.bfloat16 if GPU else torch.float32
    args = PreferenceConfig(loss_type=case.loss, **settings(case, output_dir, sharded))
    return Setup(
        config=model_config(case.model),
        args=args,
        shape=case.shape,
        dtype=dtype,
        quantization=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if sharded else torch.uint8,  # FSDP shards floating-point tensors only
        ),
        peft=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
        device="cuda" if GPU else "cpu",
    )


def settings(case: Case, output_dir: str, sharded: bool) -> dict[str, Any]:
    return {
        "output_dir": output_dir,
        "max_length": None,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": True,
        "bf16": GPU,
        "optim": "adamw_torch" if sharded or not GPU else "paged_adamw_8bit",
        "learning_rate": 5e-6,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not GPU,
    }


def random_model(setup: Setup, device: torch.device) -> Any:
    """Build a model with random weights on a device, quantizing each layer before building the next."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(setup.config, dtype=setup.dtype)
    assert setup.quantization is not None
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), setup.quantization)
    model.is_loaded_in_4bit = True
    torch.manual_seed(0)

    def random(shape: torch.Size) -> torch.Tensor:
        return torch.empty(shape, dtype=setup.dtype, device=device).normal_(std=0.02)

    made: dict[int, nn.Parameter] = {}  # shared weights stay shared
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                made[id(parameter)] = _filled(module, name, parameter, random, setup.quantization)
            setattr(module, name, made[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model


def _filled(module: nn.Module, name: str, parameter: nn.Parameter, random: Any, quantization: Any) -> Any:
    if isinstance(module, bnb.nn.Linear4bit) and name == "weight":
        weight = random(torch.Size((module.out_features, module.in_features)))
        quantized = bnb.nn.Params4bit(
            weight.cpu() if weight.device.type == "cuda" else weight,  # it is quantized on its way to the device
            requires_grad=False,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
            quant_type=quantization.bnb_4bit_quant_type,
            quant_storage=quantization.bnb_4bit_quant_storage,
            module=module,
        )
        return quantized.to(weight.device)
    if parameter.dim() == 1:  # norms and biases
        value = (
            torch.ones_like(random(parameter.shape)) if name == "weight" else torch.zeros_like(random(parameter.shape))
        )
        return nn.Parameter(value, requires_grad=False)
    return nn.Parameter(random(parameter.shape), requires_grad=False)


def rows_of(case: Case, steps: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()

    shape = case.shape
    return [
        {
            "prompt_ids": ids(shape.prompt_tokens),
            "completion_ids": [ids(shape.response_tokens) for _ in range(shape.responses)],
            "ranks": list(range(shape.responses)),
        }
        for _ in range(steps)
    ]


def run(name: str, side: str, strategy: str, cap: float | None, steps: int) -> dict[str, Any]:
    """Take the steps in this process; return its peaks and times, or what ran out of memory."""
    case, device = CASES[name], torch.device("cuda", 0) if GPU else torch.device("cpu")
    if GPU and cap is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total), device)
    stopwatch = Stopwatch(with_collating=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(case, side, setup_of(case, strategy, folder), steps, device, stopwatch)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(explain_out_of_memory(error)), **peaks()}
    tokens = case.shape.responses * case.shape.response_tokens + case.shape.prompt_tokens
    seconds = statistics.median(stopwatch.seconds[1:] or stopwatch.seconds)
    return {
        "seconds_per_step": seconds,
        # Tokens of the data: each prompt counts once, however often a side computes it.
        "tokens_per_second": tokens / seconds,
        "steps": len(stopwatch.seconds),
        **peaks(),
    }


def train(case: Case, side: str, setup: Setup, steps: int, device: torch.device, stopwatch: Stopwatch) -> None:
    model = random_model(setup, device)
    rows = rows_of(case, steps)
    common: dict[str, Any] = {
        "model": model,
        "processing_class": no_tokenizer(),
        "peft_config": setup.peft,
        "callbacks": [stopwatch],
    }
    if side == "ours":
        setup.args.max_steps = steps
        trainer: Any = PreferenceTrainer(args=setup.args, train_dataset=Dataset.from_list(rows), **common)
    else:
        args = DPOConfig(
            **settings(case, setup.args.output_dir, sharded=setup.args.optim == "adamw_torch" and GPU),
            gradient_accumulation_steps=math.comb(case.shape.responses, 2),
            max_steps=steps,
        )
        trainer = TokenIdsDPOTrainer(args=args, train_dataset=Dataset.from_list(as_pairs(rows)), **common)
    trainer.remove_callback(PrinterCallback)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()


def peaks() -> dict[str, Any]:
    """Return the peaks of this process in GiB: torch's allocator, or resident memory on a CPU."""
    if GPU:
        return {
            "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
    return {"peak_resident_gib": peak_resident_gib()}


def in_a_fresh_process(name: str, side: str, strategy: str, cap: float | None, steps: int) -> dict[str, Any]:
    config = STRATEGIES[strategy]
    launcher = [] if config is None else ["-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file"]
    command = [
        sys.executable,
        *launcher,
        *([] if config is None else [str(ACCELERATE / config)]),
        __file__,
        "--child",
        json.dumps({"name": name, "side": side, "strategy": strategy, "cap": cap, "steps": steps}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:  # a strategy or model that fails is a result too
        return {"failed": done.stderr.strip().splitlines()[-1:] or ["no output"]}
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[name for name in CASES if name != "tiny"])
    parser.add_argument("--caps", nargs="+", type=float, default=[12, 16, 24], help="GB of GPU memory, each in turn")
    parser.add_argument("--sides", nargs="+", choices=["ours", "trl"], default=["ours", "trl"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["single"], help="with one rank")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    disable_progress_bars()
    if options.child is not None:
        print("RESULT " + json.dumps(run(**options.child)))
        return

    device = torch.cuda.get_device_name(0).replace(" ", "-") if GPU else "cpu"
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"memory-{device}.json".lower()
    content = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    caps = options.caps if GPU else [None]
    for name, strategy in itertools.product(options.cases, options.strategies):
        with tempfile.TemporaryDirectory() as folder:
            expected = estimate(setup_of(CASES[name], strategy, folder))
        for side, cap in itertools.product(options.sides, caps):
            row = in_a_fresh_process(name, side, strategy, cap, options.steps)
            row |= {
                "case": asdict(CASES[name]),
                "side": side,
                "strategy": strategy,
                "cap_gib": cap,
                "versions": versions(),
                "hardware": hardware(),
            }
            if side == "ours":
                row["estimated_allocated_gib"] = expected.allocated / 2**30
                row["estimated_total_gib"] = expected.total / 2**30
            content["rows"][f"{name} {side} {strategy} {cap or 'uncapped'}"] = row
            write_json(path, content)
            print(f"{name}, {side}, {strategy}, {cap or 'no'} GB cap: {summary(row)}", flush=True)


def summary(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "out_of_memory" in row:
        return row["out_of_memory"]
    peak = row.get("peak_allocated_gib", row.get("peak_resident_gib"))
    guess = f", estimated {row['estimated_allocated_gib']:.2f}" if "estimated_allocated_gib" in row else ""
    return (
        f"peak {peak:.2f} GiB{guess}; {row['seconds_per_step']:.2f} s a step, {row['tokens_per_second']:.0f} tokens/s"
    )


def markdown(content: dict[str, Any]) -> str:
    """Return the table of a results file, as docs/memory.md shows it."""
    lines = [
        "| case | side | cap GB | micro-batch x K | max_length | estimate, allocated GiB | measured, allocated GiB "
        "| error of the estimate | measured, reserved GiB | seconds per step |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in content["rows"].items():
        shape = Shape(**row["case"]["shape"])
        peak, estimated = row["peak_allocated_gib"], row.get("estimated_allocated_gib")
        cells = [
            name.split()[0],
            row["side"],
            f"{row['cap_gib']:g}",
            f"{shape.prompts} x {shape.responses}",
            f"{shape.prompt_tokens + shape.response_tokens:,}",
            "" if estimated is None else f"{estimated:.2f}",
            f"{peak:.2f}",
            "" if estimated is None else f"{estimated / peak - 1:+.2%}",
            f"{row['peak_reserved_gib']:.2f}",
            f"{row['seconds_per_step']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
