"""Run by `test_two_processes.py` under torchrun: the same runs as in one process, with half of the batch per rank."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import trl_dpo_ext
from tests import helpers
from tests.training import support

# Each step reads eight prompts with 2 to 5 responses each. The losses of the mix share no default. The next run
# has running means and a different number of rows on each rank. The others cover every trainer and a stored reference.
RUNS: dict[str, dict[str, Any]] = {
    "mix": {"loss_type": ["plackett_luce", "simpo", "minor_dpo"], "loss_weights": [1.0, 0.5, 2.0]},
    "running_means": {"loss_type": ["bco", "beta_dpo"], "beta": 0.2, **support.LAYOUTS["shared_packed"]},
    "reference_free": {"cls": trl_dpo_ext.ReferenceFreeTrainer},
    "minor_dpo": {"cls": trl_dpo_ext.MinorDPOTrainer, **support.LAYOUTS["shared_packed"]},
    "stored_reference": {"loss_type": "dpo", "precompute_ref_log_probs": True, **support.LAYOUTS["shared_packed"]},
    "plackett_luce": {"cls": trl_dpo_ext.PlackettLuceTrainer, **support.LAYOUTS["shared_packed"]},
}
RESUMED = ("running_means", "plackett_luce")
PROMPTS_PER_STEP = 8


def run(
    name: str, model: str, folder: str, *, batch_size: int, accumulation: int = 2, resume: str | None = None
) -> tuple[support.Run, Any]:
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
        save_steps=1,
        **RUNS[name],
    )
    result = support.train(trainer, resume_from_checkpoint=resume)
    result.logs.append(trainer.evaluate())
    return result, trainer


def main(model: str, folder: str) -> None:
    for name in RUNS:
        cases = {name: None} | ({f"{name}-resumed": f"{folder}/one/{name}/checkpoint-1"} if name in RESUMED else {})
        for case, resume in cases.items():
            result, trainer = run(name, model, f"{folder}/two/{case}", batch_size=2, resume=resume)
            assert dist.get_world_size() == trainer.accelerator.num_processes == 2
            assert trainer.accelerator.distributed_type.value == "MULTI_CPU"

            # Both ranks end with the same weights and the same moving averages.
            mine = torch.cat([weight.flatten() for weight in result.weights.values()])
            means = [mean.value for mean in trainer.objective.running_means.values()]
            for value in (mine, torch.tensor(means, dtype=torch.float64)):
                others = [torch.empty_like(value) for _ in range(2)]
                dist.all_gather(others, value)
                assert torch.equal(others[0], others[1]), case
            if dist.get_rank() == 0:
                torch.save({"run": vars(result), "means": means}, Path(folder) / f"{case}.pt")
    with contextlib.suppress(RuntimeError):  # the other rank has already exited
        dist.barrier()
    os._exit(0)  # gloo's threads can deadlock with interpreter shutdown


if __name__ == "__main__":
    main(*sys.argv[1:])
