"""Run under accelerate's launcher by `test_sharded.py`: all cases with one engine; rank 0 saves the results."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from tests.distributed import cases, on_the_cpu


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().float().clone()


class Gradients(TrainerCallback):
    """The whole gradients of each step. DeepSpeed keeps its own, so there are none with it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.steps.append({name: whole(p.grad) for name, p in named if p.grad is not None})


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: whole(p) for name, p in trainer.model.named_parameters()}


def run(case: str, model: str, folder: str) -> dict[str, Any]:
    trainer = cases.trainer(case, model, f"{folder}/{case}", int(os.environ["WORLD_SIZE"]), use_cpu=False)
    recorder = Gradients()
    trainer.add_callback(recorder)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    engine = str(trainer.accelerator.distributed_type.value)
    result = {"engine": engine, "logs": logs, "gradients": recorder.steps, "weights": weights(trainer)}
    trainer.save_model(f"{folder}/{case}/saved")
    return result


def main(model: str, folder: str, *names: str) -> None:
    on_the_cpu.prepare()
    faulthandler.dump_traceback_later(200, exit=True)  # a hang says where
    results = {}
    for case in names or cases.CASES:
        try:
            results[case] = run(case, model, folder)
        except Exception:
            results[case] = {"error": traceback.format_exc()}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads can deadlock with interpreter shutdown


if __name__ == "__main__":
    main(*sys.argv[1:])
