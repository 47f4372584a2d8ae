"""Run by `test_engines_resume.py`: every engine writes a checkpoint, then every engine goes on from every checkpoint.

One process imports everything and forks the processes of each run, with the environment that accelerate's launcher
gives them: a fork costs nothing, a launch many seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests import helpers
from tests.distributed import cases, on_the_cpu
from tests.distributed.sharded import weights
from tests.training import support

STEPS, SAVED = 4, 2
TIME_LIMIT = 120  # seconds; a run takes a few

# The accelerate configs by engine; None: no launcher. FSDP2 writes its checkpoints whole or in parts (torch's DCP).
ENGINES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "plain": (None, ()),
    "ddp": ("cpu_2", ()),
    "fsdp2": ("fsdp2", ()),
    "fsdp2_parts": ("fsdp2", ("--fsdp_state_dict_type", "SHARDED_STATE_DICT")),
    "zero2": ("zero2", ()),
    "zero3": ("zero3", ()),
}
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


def environment(engine: str, processes: int) -> dict[str, str]:
    """Return what accelerate's launcher puts into the environment of an engine's processes."""
    config, options = ENGINES[engine]
    if config is None:
        return {"ACCELERATE_USE_CPU": "true"}
    file = str(helpers.ROOT / "recipes" / "accelerate" / f"{config}.yaml")
    # The launcher starts a single process of FSDP and DeepSpeed as it does several.
    arguments = launch_command_parser().parse_args(
        ["--config_file", file, "--main_process_port", "29500", "--num_processes", "2", *options, "train.py"]
    )
    arguments, defaults, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        given = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        given = prepare_multi_gpu_env(arguments)
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return {**given, **shared, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(helpers.free_port())}


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


def in_processes(work: Any, engine: str, processes: int) -> list[int]:
    """Run `work(rank)` in forked processes of an engine; return their exit codes, -9 for one that hangs."""
    given = environment(engine, processes)

    def run(rank: int) -> None:
        os.environ.update(given)
        if engine != "plain":
            os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"})
        if engine not in ("plain", "ddp"):
            on_the_cpu.prepare()
        faulthandler.dump_traceback_later(TIME_LIMIT - 10)
        work(rank)
        if dist.is_initialized():
            dist.barrier()  # leaving first would break messages the others still expect

    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            run(rank)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return [_code(child) for child in children]


def _code(child: int) -> int:
    deadline = time.monotonic() + TIME_LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
