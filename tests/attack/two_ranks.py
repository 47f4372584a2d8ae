"""Run by `test_two_ranks.py` under torchrun: rounds of training in which the second process differs, or doesn't."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object, set_seed

from tests import helpers
from tests.training import support
from trl_dpo_ext.data import DataError
from trl_dpo_ext.training import ConfigError

ROWS = helpers.ranked_dataset(8)
CHANGED = [{**row, "completions": [*row["completions"][:-1], "something else"]} for row in ROWS]

# What the second process has instead of BASE.
SETTINGS: list[dict[str, Any]] = [
    {"learning_rate": 2e-3}, {"seed": 3}, {"beta": 0.3}, {"max_steps": 3}, {"num_train_epochs": 9.0},
    {"per_device_train_batch_size": 1}, {"gradient_accumulation_steps": 2}, {"weight_decay": 0.1},
    {"loss_type": "ipo"}, {"loss_type": "simpo", "beta": 2.0}, {"loss_type": ["plackett_luce", "sft"]},
    {"loss_weights": [2.0]}, {"save_steps": 2}, {"save_strategy": "no"}, {"eval_steps": 2}, {"eval_strategy": "no"},
    {"eval_on_start": True}, {"logging_steps": 2}, {"optim": "rmsprop"}, {"max_grad_norm": 0.5}, {"warmup_steps": 1},
    {"lr_scheduler_type": "cosine"}, {"precompute_ref_log_probs": True}, {"prefix_sharing": True},
    {"responses_per_pass": 1}, {"data_seed": 5}, {"dataloader_drop_last": True},
    {"sync_ref_model": True}, {"disable_dropout": False}, {"per_device_eval_batch_size": 1},
    {"gradient_checkpointing": True}, {"loss_type": "minor_dpo"}, {"loss_type": "robust"},
]  # fmt: skip
DATA: dict[str, dict[str, Any]] = {
    "more rows": {"train": helpers.ranked_dataset(9)},
    "fewer rows": {"train": ROWS.select(range(7))},
    "another order": {"train": ROWS.select([1, 0, *range(2, 8)])},
    "another text": {"train": datasets.Dataset.from_list(CHANGED)},
    "one row less to evaluate": {"evaluation": ROWS.select(range(3))},
    "other rows to evaluate": {"evaluation": ROWS.select(range(4, 8))},
    "nothing to evaluate": {"evaluation": None, "eval_strategy": "no"},
    "two sets to evaluate": {"evaluation": {"a": ROWS, "b": ROWS}},
    "an adapter": {"peft_config": support.lora()},
    "resume": {"resume": True},
    "another folder": {"output_dir": "elsewhere"},
}
ADAPTERS: list[dict[str, Any]] = [{"r": 2}, {"lora_alpha": 4}, {"target_modules": ["q_proj"]}, {"bias": "all"}]


def run(model: str, folder: Path, difference: dict[str, Any]) -> None:
    given = {"train": ROWS, "evaluation": ROWS.select(range(4)), "resume": None, **difference}
    train, evaluation, resume = (given.pop(name) for name in ("train", "evaluation", "resume"))
    base = {
        "output_dir": str(folder / given.pop("output_dir", "out")),
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "logging_steps": 1,
        "warmup_steps": 0,
        "per_device_train_batch_size": 2,
    }
    trainer = support.trainer(model, folder, train, eval_dataset=evaluation, **{**base, **given})
    trainer.train(resume_from_checkpoint=resume)


def main(model: str, folder: Path, seed: int, seconds: float) -> None:
    # A process that waits for one that has gone on ends after this time with an error instead of never.
    PartialState(cpu=True, timeout=timedelta(seconds=60))
    rank, draw, end = dist.get_rank(), random.Random(seed), time.monotonic() + seconds
    counts: Counter[str] = Counter()
    go_on = True
    while go_on:
        set_seed(0)
        kind = draw.choice(["setting", "setting", "data", "adapter", "nothing"])
        common: dict[str, Any] = {}
        if kind == "setting":
            difference = draw.choice(SETTINGS)
        elif kind == "data":
            difference = DATA[draw.choice(sorted(DATA))]
        elif kind == "adapter":
            common = {"peft_config": support.lora()}
            difference = {"peft_config": support.lora(**draw.choice(ADAPTERS))}
        else:
            difference = {}
        said = "trained"
        try:
            run(model, folder, {**common, **(difference if rank == 1 else {})})
        except (ConfigError, DataError) as error:
            said = f"refused: {error}"
        both = gather_object([said])
        expected = "refused" if difference else "trained"
        shown = {"seed": seed, "round": counts.total(), "difference": str(difference), "said": both}
        assert all(one.startswith(expected) for one in both), json.dumps(shown)
        assert both[0] == both[1], json.dumps(shown)
        counts[f"{kind} {expected}"] += 1
        dist.barrier()
        if rank == 0:
            for made in folder.iterdir():
                shutil.rmtree(made)
        (go_on,) = gather_object([time.monotonic() < end or counts.total() < 12])[:1]
    if rank == 0:
        print(f"{counts.total()} rounds of two processes, seed {seed}: {dict(sorted(counts.items()))}", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads can deadlock with interpreter shutdown


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
