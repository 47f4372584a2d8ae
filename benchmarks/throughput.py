"""Measures how much faster a training step is than one of TRL's `DPOTrainer` on the same rows.

    python benchmarks/throughput.py --model HuggingFaceTB/SmolLM2-135M-Instruct
    python benchmarks/throughput.py --model llama-3.1-8b --attention flex_attention --dtype bfloat16

Both trainers run in one process and take turns, one optimizer step each, on the same token ids, with the same LoRA
weights and settings. Losses and gradient norms must agree before the timing starts and in every timed step. TRL gets
rankings of K > 2 as all their pairs, in gradient-accumulation steps of `--trl-pairs`. A fresh process per trainer
measures the peak memory. Results are added to benchmarks/results/, one file per model, device and attention.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Waiting threads must not spin, so that processor time is work even on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from side_by_side import GPU, RESULTS, Stopwatch, TokenIdsDPOTrainer, as_pairs, no_tokenizer, peak_resident_gib
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import DPOConfig

import trl_dpo_ext
from trl_dpo_ext import PreferenceConfig, PreferenceTrainer
from trl_dpo_ext.memory import load_model_config, short_names
from trl_dpo_ext.record import hardware, versions, write_json

SPREAD = 0.25  # lengths are uniform within this share of their mean
BETA = 0.1


@dataclass(frozen=True)
class Shape:
    """The data of a step: mean lengths in tokens, responses per prompt, prompts per optimizer step."""

    about: str
    prompt: tuple[int, int]
    response: int
    k: int
    prompts: int

    def rows(self, vocabulary: int) -> list[dict[str, Any]]:
        """Draw the tokenized rows of a step, best response first."""
        draw = random.Random(0)

        def ids(length: int) -> list[int]:
            return [draw.randrange(vocabulary) for _ in range(length)]

        def around(mean: int) -> int:
            return draw.randint(round(mean * (1 - SPREAD)), round(mean * (1 + SPREAD)))

        return [
            {
                "prompt_ids": ids(draw.randint(*self.prompt)),
                "completion_ids": [ids(around(self.response)) for _ in range(self.k)],
                "ranks": list(range(self.k)),
            }
            for _ in range(self.prompts)
        ]


def around(mean: int) -> tuple[int, int]:
    return round(mean * (1 - SPREAD)), round(mean * (1 + SPREAD))


# Mean token counts of the well-known data sets.
SHAPES = {
    "tldr": Shape("TL;DR summaries, pairs", around(350), 40, 2, 2),
    "hh": Shape("Anthropic HH, pairs", around(130), 60, 2, 2),
    "ultrafeedback": Shape("UltraFeedback, pairs", around(125), 280, 2, 2),
    "capybara": Shape("Capybara, pairs", around(700), 450, 2, 1),
    "tldr_k4": Shape("TL;DR, rankings of 4", around(350), 40, 4, 1),
    "tldr_k8": Shape("TL;DR, rankings of 8", around(350), 40, 8, 1),
    "no_prompt": Shape("almost no prompt, pairs (worst case)", (1, 8), 128, 2, 2),
    "no_prompt_k4": Shape("almost no prompt, rankings of 4 (worst case)", (1, 8), 128, 4, 1),
}


class Side:
    """One of the two trainers, ready to take a step again and again."""

    def __init__(self, name: str, shape: Shape, options: argparse.Namespace) -> None:
        self.folder = tempfile.TemporaryDirectory()
        rows = shape.rows(vocabulary=8000)
        pairs = as_pairs(rows)
        per_batch = len(pairs) if shape.k == 2 else options.trl_pairs
        settings: dict[str, Any] = {
            "output_dir": self.folder.name,
            "beta": BETA,
            "max_length": None,
            "max_steps": 1,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "gradient_checkpointing": options.gradient_checkpointing,
            "bf16": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "model_init_kwargs": None,
        }
        attention = options.trl_attention if name == "trl" else options.attention
        self.stopwatch = Stopwatch(with_collating=True)
        trainer: dict[str, Any] = {
            "model": load(options.model, attention, options.dtype),
            "processing_class": no_tokenizer(),
            "peft_config": LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            "callbacks": [self.stopwatch],
        }
        if name == "trl":
            assert len(pairs) % per_batch == 0, (
                f"--trl-pairs {per_batch} doesn't divide the {len(pairs)} pairs of a step"
            )
            args: Any = DPOConfig(
                per_device_train_batch_size=per_batch,
                gradient_accumulation_steps=len(pairs) // per_batch,
                **settings,
            )
            self.trainer: Any = TokenIdsDPOTrainer(args=args, train_dataset=Dataset.from_list(pairs), **trainer)
        else:
            args = PreferenceConfig(
                per_device_train_batch_size=len(rows) if shape.k == 2 else 1,
                gradient_accumulation_steps=1 if shape.k == 2 else len(rows),
                **settings,
            )
            self.trainer = PreferenceTrainer(args=args, train_dataset=Dataset.from_list(rows), **trainer)
        self.trainer.remove_callback(PrinterCallback)
        generator = torch.Generator().manual_seed(0)
        for parameter_name, p in self.trainer.model.named_parameters():
            if "lora_B" in parameter_name:  # at zero the loss is log 2 whatever the forward computes
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.02)
        self.tokens = 0
        backbone = self.trainer.model.get_base_model().base_model
        backbone.register_forward_pre_hook(self._count, with_kwargs=True)
        self.peak_gib = 0.0

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()

    def step(self) -> dict[str, float]:
        """Take one optimizer step; return its seconds, loss, gradient norm and the tokens the model computed."""
        self.tokens = 0
        self.trainer.train()
        log = next(entry for entry in self.trainer.state.log_history if "grad_norm" in entry)
        return {
            "seconds": self.stopwatch.seconds[-1],
            "cpu_seconds": self.stopwatch.cpu_seconds[-1],
            "loss": log["loss"],
            "grad_norm": float(log["grad_norm"]),
            "tokens": self.tokens,
        }


def load(name: str, attention: str, dtype: str) -> Any:
    options = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    if name in short_names():
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return AutoModelForCausalLM.from_config(load_model_config(name), **options)
    return AutoModelForCausalLM.from_pretrained(name, **options)


def token_bound(shape: Shape) -> float:
    """Return the tokens of all pairs without padding, divided by those of all groups with each prompt once."""
    rows = shape.rows(vocabulary=8000)
    lengths = [(len(row["prompt_ids"]), [len(ids) for ids in row["completion_ids"]]) for row in rows]
    plain = sum((shape.k - 1) * (shape.k * prompt + sum(responses)) for prompt, responses in lengths)
    return plain / sum(prompt + sum(responses) for prompt, responses in lengths)


def check_equal(ours: dict[str, float], trl: dict[str, float], tolerance: float) -> None:
    for name in ("loss", "grad_norm"):
        difference = abs(ours[name] - trl[name]) / abs(trl[name])
        if not difference <= tolerance:
            raise SystemExit(f"{name} differs by {difference:.2g}: ours {ours[name]}, TRL's {trl[name]}; not timed.")


def measure(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns; return medians, and the ratios of neighbouring steps."""
    sides = {name: Side(name, shape, options) for name in ("trl", "ours")}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(1 + options.repeats):
        for name, side in sides.items():
            taken[name].append(side.step())
        check_equal(taken["ours"][-1], taken["trl"][-1], options.tolerance)
        if turn:
            trl, ours = (taken[name][-1]["seconds"] for name in sides)
            print(f"  step {turn}: TRL {trl:.2f} s, ours {ours:.2f} s", flush=True)
    loss_difference = abs(taken["ours"][0]["loss"] - taken["trl"][0]["loss"])
    timed = {name: steps[1:] for name, steps in taken.items()}
    pairs = list(zip(timed["trl"], timed["ours"], strict=True))
    ratios = [trl["seconds"] / ours["seconds"] for trl, ours in pairs]
    result: dict[str, Any] = {"ratio": statistics.median(ratios), "ratios": ratios, "loss_difference": loss_difference}
    # On a busy machine, processor time (of all threads) is the steadier measure.
    result["cpu_ratio"] = statistics.median(trl["cpu_seconds"] / ours["cpu_seconds"] for trl, ours in pairs)
    for name, steps in timed.items():
        seconds = statistics.median(step["seconds"] for step in steps)
        result[name] = {
            "seconds": seconds,
            "cpu_seconds": statistics.median(step["cpu_seconds"] for step in steps),
            "groups_per_second": shape.prompts / seconds,
            "tokens": steps[0]["tokens"],
            "loss": taken[name][0]["loss"],
        }
    bound = token_bound(shape)
    result |= {"token_bound": bound, "ratio_over_bound": result["ratio"] / bound}
    return result


def peak_memory() -> float:
    """Return the peak of this process in GiB: device memory, or resident memory on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if GPU else peak_resident_gib()


def memory_in_a_fresh_process(name: str, shape: str) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name, "--shapes", shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def markdown(content: dict[str, Any]) -> str:
    """Return the table of a results file, as docs/performance.md shows it."""
    lines = [
        "| shape | step, against TRL's | least to most | in processor time | token bound | peak memory | TRL's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, shape in SHAPES.items():
        if (result := content["shapes"].get(name)) is None:
            lines.append(f"| {shape.about} | not measured | | | {token_bound(shape):.2f} | | |")
            continue
        low, high = min(result["ratios"]), max(result["ratios"])
        ours, trl = result["ours"]["peak_gib"], result["trl"]["peak_gib"]
        lines.append(
            f"| {shape.about} | {result['ratio']:.2f} | {low:.2f} to {high:.2f} | {result['cpu_ratio']:.2f} "
            f"| {result['token_bound']:.2f} | {ours:.2f} GiB | {trl:.2f} GiB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=f"Hub id, folder, or random weights: {', '.join(short_names())}")
    parser.add_argument("--name", help="the model's name in the results; its last path component by default")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--attention", default="sdpa", help="attention of ours: sdpa, eager, flex_attention")
    parser.add_argument("--trl-attention", default="sdpa", help="attention of TRL: sdpa, flash_attention_2, ...")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--trl-pairs", type=int, default=2, help="pairs per micro-batch on TRL's side for K > 2")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per side, after one warm-up step")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="allowed relative difference of losses and gradient norms; by default 0.001 in float32 and 0.15 in "
        "bfloat16, where the logits of random weights round that much",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice by default")
    parser.add_argument("--memory-of", choices=["trl", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tolerance = options.tolerance or (1e-3 if options.dtype == "float32" else 0.15)
    disable_progress_bars()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        Side(options.memory_of, SHAPES[options.shapes[0]], options).step()
        print(peak_memory())
        return

    device = "gpu" if torch.cuda.is_available() else "cpu"
    model = options.name or Path(options.model).name
    path = RESULTS / f"throughput-{model}-{device}-{options.attention}.json".lower()
    content = json.loads(path.read_text()) if path.exists() else {"shapes": {}}
    for name in options.shapes:
        shape = SHAPES[name]
        print(
            f"{name}: {shape.about}; prompt {shape.prompt[0]}-{shape.prompt[1]}, response about {shape.response} tokens"
        )
        result = asdict(shape) | measure(shape, options)
        gc.collect()
        for side in ("trl", "ours"):
            result[side]["peak_gib"] = memory_in_a_fresh_process(side, name)
        result["load_average"] = os.getloadavg()[0]
        percent = 100 * result["ratio_over_bound"]
        ours, trl = result["ours"], result["trl"]
        print(
            f"  {result['ratio']:.2f} x TRL's speed ({result['cpu_ratio']:.2f} x in processor time), {percent:.0f} % "
            f"of the token-count bound {result['token_bound']:.2f}; {ours['groups_per_second']:.3g} groups/s; peak "
            f"{ours['peak_gib']:.2f} GiB, TRL's {trl['peak_gib']:.2f} GiB",
            flush=True,
        )
        content["shapes"][name] = result
        keep = ("dtype", "attention", "trl_attention", "gradient_checkpointing", "trl_pairs", "repeats")
        content |= {
            "model": model,
            "settings": {key: getattr(options, key) for key in keep} | {"lora_r": 16},
            "versions": versions() | {"trl-dpo-ext": trl_dpo_ext.__version__},
            "hardware": hardware(),
        }
        write_json(path, content)
    print(markdown(content))


if __name__ == "__main__":
    main()
