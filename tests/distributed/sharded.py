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


def whole(weight: Any) -> torch.Tensor:
    if hasattr(weight, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters(weight):
            return weight.detach().float().clone()
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().float().clone()


class Gradients(TrainerCallback):
    """The whole gradients of each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_deepspeed_enabled:  # its backward pass ends with the step, and leaves no gradients
            from deepspeed.utils import safe_get_full_grad

            engine = self.trainer.model_wrapped
            step = engine.step

            def recorded(*args: Any, **kwargs: Any) -> Any:
                found = {n: safe_get_full_grad(p) for n, p in engine.module.named_parameters() if p.requires_grad}
                self.steps.append({n: whole(g) for n, g in found.items() if g is not None})
                return step(*args, **kwargs)

            engine.step = recorded

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.trainer.is_deepspeed_enabled:
            self.steps.append({n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None})


def weights(case: str, trainer: Any) -> dict[str, torch.Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: whole(p) for name, p in model.named_parameters() if cases.compared(case, p)}


def run(case: str, model: str, folder: str) -> dict[str, Any]:
    trainer = cases.trainer(case, model, f"{folder}/{case}", int(os.environ["WORLD_SIZE"]), use_cpu=False)
    recorder = Gradients(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    engine = str(trainer.accelerator.distributed_type.value)
    result = {"engine": engine, "logs": logs, "gradients": recorder.steps, "weights": weights(case, trainer)}
    result["reference"] = trainer.reference_identity.fingerprint
    trainer.save_model(f"{folder}/{case}/saved")
    return result


def main(model: str, folder: str, *names: str) -> None:
    on_the_cpu.prepare()
    faulthandler.dump_traceback_later(200, exit=True)  # a hang says where
    results = {}
    for case in names or (*cases.CASES, *cases.FAILING):
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
