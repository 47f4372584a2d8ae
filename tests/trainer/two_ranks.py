"""Run by `test_accumulation.py` under torchrun: the same runs as in one process, each rank with half of the batch."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests import helpers
from tests.trainer import support

# Each step reads eight prompts; the losses have no default in common, two of them keep a running mean, and the second
# run lays out a different number of rows on each rank.
RUNS: dict[str, dict[str, Any]] = {
    "mix": {"loss_type": ["plackett_luce", "simpo", "minor_dpo"], "loss_weights": [1.0, 0.5, 2.0]},
    "running_means": {"loss_type": ["bco", "beta_dpo"], "beta": 0.2, **support.LAYOUTS["shared_packed"]},
}
PROMPTS_PER_STEP = 8


def run(name: str, model: str, folder: str, *, batch_size: int, accumulation: int = 2) -> tuple[support.Run, Any]:
    """Train for two steps, evaluate; return the run (with the evaluation as its last log) and its trainer."""
    trainer = support.trainer(
        model,
        folder,
        helpers.ranked_dataset(2 * PROMPTS_PER_STEP, ties=True),
        eval_dataset=helpers.ranked_dataset(8, seed=1),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        optim="sgd",
        save_strategy="steps",
        save_steps=2,
        save_only_model=True,
        **RUNS[name],
    )
    result = support.train(trainer)
    result.logs.append(trainer.evaluate())
    return result, trainer


def main(model: str, folder: str) -> None:
    for name in RUNS:
        result, trainer = run(name, model, f"{folder}/{name}", batch_size=2)
        assert dist.get_world_size() == trainer.accelerator.num_processes == 2
        assert trainer.accelerator.distributed_type.value == "MULTI_CPU"

        # Both ranks end with the same weights and the same moving averages.
        mine = torch.cat([weight.flatten() for weight in result.weights.values()])
        means = [mean.value for mean in trainer.objective.running_means.values()]
        for value in (mine, torch.tensor(means, dtype=torch.float64)):
            others = [torch.empty_like(value) for _ in range(2)]
            dist.all_gather(others, value)
            assert torch.equal(others[0], others[1]), name
        if dist.get_rank() == 0:
            torch.save({"run": vars(result), "means": means}, Path(folder) / f"{name}.pt")
    with contextlib.suppress(RuntimeError):  # the other rank was through first, and has left
        dist.barrier()
    os._exit(0)  # gloo's threads and the interpreter's end can wait for each other forever


if __name__ == "__main__":
    main(*sys.argv[1:])
