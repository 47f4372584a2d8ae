"""The record of a run: versions, hardware, time, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Of result.json. Raised when a reader of the former format would misread a file; hub/run.py refuses newer ones.
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


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it, so that no reader ever finds half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    temporary.replace(path)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()
