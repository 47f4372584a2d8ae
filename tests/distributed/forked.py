"""Runs work in forked processes of an engine, with the environment that accelerate's launcher gives them.

For scripts that are launched by a test and import everything before: a fork costs nothing, a launch many seconds.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests import helpers
from tests.distributed import on_the_cpu

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


def in_processes(work: Callable[[int], None], engine: str, processes: int) -> list[int]:
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
