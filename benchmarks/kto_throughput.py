"""Measures how much faster a step of `kto` is than one of TRL's `KTOTrainer` on the same rows.

    python benchmarks/kto_throughput.py --model HuggingFaceTB/SmolLM2-135M-Instruct

Both trainers run in one process and take turns, one optimizer step each, on the same token ids, the same mismatched
completions and the same LoRA weights; the reference is computed in the step. With one micro-batch, losses and gradient
norms must agree in every step. With four, they may not: TRL estimates the KL term on each micro-batch, ours on the
whole step, which costs a first pass without gradients.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from side_by_side import RESULTS, Stopwatch, no_tokenizer
from throughput import SPREAD, around, check_equal, load
from transformers import PrinterCallback
from trl import KTOConfig, KTOTrainer

import trl_dpo_ext
from trl_dpo_ext import PreferenceConfig, PreferenceTrainer
from trl_dpo_ext.memory import short_names
from trl_dpo_ext.record import hardware, versions, write_json

PROMPT, RESPONSE = 350, 40  # tokens, as in TL;DR
TOLERANCE = 1e-3


class TokenIdsKTOTrainer(KTOTrainer):
    """TRL's trainer on rows that are token ids already; nothing else is changed."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def rows(count: int, vocabulary: int = 8000) -> list[dict[str, Any]]:
    """Draw tokenized rows with one response each, two of three liked, as TRL has them.

    The mismatched completion is that of the row before; the first row has the last one's.
    """
    draw = random.Random(0)

    def ids(mean: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(draw.randint(*around(mean)))]

    found: list[dict[str, Any]] = [
        {"prompt_ids": ids(PROMPT), "completion_ids": ids(RESPONSE), "label": number % 3 != 1}
        for number in range(count)
    ]
    for before, row in zip([found[-1], *found], found, strict=False):
        row["KL_completion_ids"] = before["completion_ids"]
    return found


def ours(theirs: list[dict[str, Any]]) -> Dataset:
    """Return the rows as our trainer has them; it adds the same mismatched completions itself."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": row["prompt_ids"],
                "completion_ids": [row["completion_ids"]],
                "ranks": [0],
                "labels": [row["label"]],
                "row": number,
            }
            for number, row in enumerate(theirs)
        ]
    )


class Side:
    """One of the two trainers, ready to take a step again and again."""

    def __init__(self, name: str, accumulation: int, options: argparse.Namespace) -> None:
        self.folder = tempfile.TemporaryDirectory()
        data = rows(options.prompts)
        settings: dict[str, Any] = {
            "output_dir": self.folder.name,
            "loss_type": "kto",
            "beta": 0.1,
            "max_length": None,
            "max_steps": 1,
            "per_device_train_batch_size": options.prompts // accumulation,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "gradient_checkpointing": False,
            "bf16": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "model_init_kwargs": None,
        }
        self.stopwatch = Stopwatch(with_collating=True)
        given: dict[str, Any] = {
            "model": load(options.model, "sdpa", "float32"),
            "processing_class": no_tokenizer(),
            "peft_config": LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            "callbacks": [self.stopwatch],
        }
        if name == "trl":
            self.trainer: Any = TokenIdsKTOTrainer(
                args=KTOConfig(**settings), train_dataset=Dataset.from_list(data), **given
            )
        else:
            self.trainer = PreferenceTrainer(args=PreferenceConfig(**settings), train_dataset=ours(data), **given)
        self.trainer.remove_callback(PrinterCallback)
        generator = torch.Generator().manual_seed(0)
        for parameter_name, p in self.trainer.model.named_parameters():
            if "lora_B" in parameter_name:  # at zero policy and reference agree, and the KL term is 0
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.02)

    def step(self) -> dict[str, float]:
        """Take one optimizer step; return its seconds, loss and gradient norm."""
        self.trainer.train()
        log = next(entry for entry in self.trainer.state.log_history if "grad_norm" in entry)
        return {
            "seconds": self.stopwatch.seconds[-1],
            "cpu_seconds": self.stopwatch.cpu_seconds[-1],
            "loss": log["loss"],
            "grad_norm": float(log["grad_norm"]),
        }


def measure(accumulation: int, options: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns; return medians, and the ratios of neighbouring steps."""
    sides = {name: Side(name, accumulation, options) for name in ("trl", "ours")}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(1 + options.repeats):
        for name, side in sides.items():
            taken[name].append(side.step())
        if accumulation == 1:
            check_equal(taken["ours"][-1], taken["trl"][-1], TOLERANCE)
        if turn:
            trl, own = (taken[name][-1]["seconds"] for name in sides)
            print(f"  step {turn}: TRL {trl:.2f} s, ours {own:.2f} s", flush=True)
    timed = list(zip(taken["trl"][1:], taken["ours"][1:], strict=True))
    ratios = [trl["seconds"] / own["seconds"] for trl, own in timed]
    return {
        "prompts": options.prompts,
        "accumulation": accumulation,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": statistics.median(trl["cpu_seconds"] / own["cpu_seconds"] for trl, own in timed),
        **{
            name: {key: statistics.median(step[key] for step in steps[1:]) for key in ("seconds", "cpu_seconds")}
            | {"loss": steps[0]["loss"]}
            for name, steps in taken.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=f"Hub id, folder, or random weights: {', '.join(short_names())}")
    parser.add_argument("--name", help="the model's name in the results; its last path component by default")
    parser.add_argument(
        "--prompts",
        type=int,
        default=8,
        help="rows in a step: a multiple of four, above four (TRL needs two a batch)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per side, after one warm-up step")
    options = parser.parse_args()
    disable_progress_bars()
    model = options.name or Path(options.model).name
    device = "gpu" if torch.cuda.is_available() else "cpu"
    found = {}
    for accumulation in (1, 4):
        print(
            f"{options.prompts} rows, {accumulation} micro-batches; prompt about {PROMPT}, response {RESPONSE} tokens"
        )
        result = found[f"accumulation_{accumulation}"] = measure(accumulation, options)
        print(f"  {result['ratio']:.2f} x TRL's speed ({result['cpu_ratio']:.2f} x in processor time)", flush=True)
    write_json(
        RESULTS / f"kto-throughput-{model}-{device}.json".lower(),
        {
            "model": model,
            "prompt": PROMPT,
            "response": RESPONSE,
            "spread": SPREAD,
            "lora_r": 16,
            "load_average": os.getloadavg()[0],
            **found,
            "versions": versions() | {"trl-dpo-ext": trl_dpo_ext.__version__},
            "hardware": hardware(),
        },
    )


if __name__ == "__main__":
    main()
