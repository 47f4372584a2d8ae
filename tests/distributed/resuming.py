"""Run by `test_engines_resume.py`: every engine writes a checkpoint, then every engine goes on from every checkpoint.

One process imports everything and forks the processes of each run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests import helpers
from tests.distributed import cases
from tests.distributed.forked import ENGINES, in_processes
from tests.distributed.sharded import weights
from tests.training import support

STEPS, SAVED = 4, 2

PROCESSES = {name: 1 if name == "plain" else 2 for name in ENGINES}


@dataclass(frozen=True)
class Resumed:
    """A run that goes on from the checkpoint of `source` with `engine` on a number of processes."""

    case: str
    source: str
    engine: str
    processes: int

    def __str__(self) -> str:
        return f"{self.case}-{self.source}-{self.engine}-{self.processes}"


RESUMED = [
    *(Resumed("dpo", source, engine, PROCESSES[engine]) for source in ENGINES for engine in ENGINES),
    *(Resumed("lora", engine, engine, PROCESSES[engine]) for engine in ENGINES),
    *(Resumed("dpo", engine, engine, 1) for engine in ENGINES if engine != "plain"),
    *(Resumed("dpo", engine, engine, 4) for engine in ("fsdp2", "fsdp2_parts")),
]


def train(case: str, engine: str, processes: int, model: str, folder: str, resume: str | None) -> dict[str, Any]:
    trainer = support.trainer(
        model,
        folder,
        helpers.ranked_dataset(2 * cases.PROMPTS, ties=True),
        per_device_train_batch_size=cases.PROMPTS // processes,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVED,
        optim="adamw_torch",
        learning_rate=1e-3,
        use_cpu=engine in ("plain", "ddp"),
        **cases.CASES[case],
    )
    trainer.train(resume_from_checkpoint=resume)
    return {"engine": trainer.accelerator.distributed_type.value, "weights": weights(trainer)}


def one(name: str, case: str, engine: str, processes: int, model: str, folder: Path, resume: str | None) -> None:
    """Train in processes of an engine; rank 0 saves the weights, and each rank its error."""

    def work(rank: int) -> None:
        try:
            result = train(case, engine, processes, model, str(folder / "runs" / name), resume)
        except Exception as error:
            (folder / f"{name}.{rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
            raise
        if rank == 0:
            torch.save(result, folder / f"{name}.pt")

    started = time.monotonic()
    codes = in_processes(work, engine, processes)
    (folder / f"{name}.codes.json").write_text(json.dumps(codes))
    print(f"{name}: {codes}, {time.monotonic() - started:.1f} s", flush=True)


def main(model: str, folder: str, *names: str) -> None:
    root = Path(folder)
    with contextlib.suppress(ImportError):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed  # noqa: F401  so that the forks needn't
    runs = [run for run in RESUMED if not names or str(run) in names]
    for case, engine in dict.fromkeys((run.case, run.source) for run in runs):
        one(f"{case}-{engine}", case, engine, PROCESSES[engine], model, root, None)
    for run in runs:
        checkpoint = str(root / "runs" / f"{run.case}-{run.source}" / f"checkpoint-{SAVED}")
        one(str(run), run.case, run.engine, run.processes, model, root, checkpoint)


if __name__ == "__main__":
    main(*sys.argv[1:])
