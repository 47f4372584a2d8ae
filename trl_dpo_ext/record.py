"""The record of a run: versions, hardware, time, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .secret_scan import redact, redact_command

# Of result.json. Raised when a reader of the former format would misread a file; hub/run_folder.py refuses newer ones.
RECORD_FORMAT = 1

_PACKAGES = ("trl-dpo-ext", "torch", "trl", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Return what a run ran on: processor, cores used by torch, memory, GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def peak_memory() -> dict[str, float | None]:
    """Return the most memory this process has used so far, in GiB: `process` (None where it isn't known) and `gpu`."""
    import torch

    try:
        with open("/proc/self/status") as file:  # ru_maxrss would be inherited from the parent process
            (kib,) = (int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        process = round(kib / 2**20, 2)
    except (OSError, ValueError):
        process = None
    gpu = round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0
    return {"process": process, "gpu": gpu}


def launch_command() -> str:
    """Return the command line that started this run, `accelerate launch` included, without access tokens."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline") as file:
            parent = file.read().rstrip("\0").split("\0")
    except OSError:
        parent = []
    launcher = next((i for i, part in enumerate(parent) if Path(part).name in ("accelerate", "torchrun")), None)
    if launcher is None:
        script = Path(sys.argv[0])
        ours = script.name == "trl-dpo-ext" or script.parts[-2:] == ("trl_dpo_ext", "__main__.py")
        parts = ["trl-dpo-ext", *sys.argv[1:]] if ours else ["python", *sys.argv]
    else:
        parts = [Path(parent[launcher]).name, *parent[launcher + 1 :]]
    return shlex.join(redact_command(parts))


def scrub(text: str, token: str | None = None) -> str:
    """Return a text without access tokens and keys: those that have the form of one, and `token`."""
    return redact(text, token)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` at the end: a reader never finds half a file.

    After an error the temporary file is deleted and `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()
