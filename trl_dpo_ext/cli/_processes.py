"""The processes of one launch: one that fails leaves its sentence, and the others end soon after it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

ERROR_FOLDER = "TRL_DPO_EXT_ERROR_FOLDER"
"""Environment variable: a folder where each process that fails leaves its sentence, for the command that started it."""

_PATIENCE = 5.0  # seconds: enough to say why, and to delete a checkpoint that is partly written
_LOST = re.compile(r"gloo|nccl|closed by peer|reset by peer|broken pipe|rendezvous|TCPStore", re.IGNORECASE)


def tell_launcher(message: str) -> None:
    """Leave a process's sentence for what started it."""
    # torchrun shows this file below its own report; the other processes look for it.
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(json.dumps({"message": message, "timestamp": int(time.time())}))
    if folder := os.environ.get(ERROR_FOLDER):
        (Path(folder) / os.environ.get("RANK", "0")).write_text(message, encoding="utf-8")


def sentences(folder: str) -> list[str]:
    """Return what the processes left in `ERROR_FOLDER`, each sentence once."""
    found: dict[str, str] = {}
    for path in sorted(Path(folder).iterdir()):
        text = path.read_text(encoding="utf-8")
        # A process that stops for another one's error says whose it is.
        plain = re.sub(r"\bProcess \d+: ", "", text)
        found[plain] = max(found.get(plain, ""), text, key=len)
    return list(found.values())


def end_with_others() -> None:
    """End this process some seconds after another one of the launch has failed.

    It may be waiting for that one's part of a sum, where no signal handler of Python runs. torchrun kills it only after
    30 seconds.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        threading.Thread(target=_watch, daemon=True).start()


def is_after_another(error: BaseException) -> bool:
    """Return whether an error only says that another process, which has said why, is gone."""
    if not isinstance(error, RuntimeError | OSError) or not _LOST.search(str(error)):
        return False
    deadline = time.monotonic() + _PATIENCE
    while not (failed := _another_failed()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return failed


def _watch() -> None:
    while not _another_failed():
        time.sleep(0.5)
    time.sleep(_PATIENCE)
    print("Stopped, because another process of this run has failed.", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # sys.exit would end this thread only


def _another_failed() -> bool:
    # torchrun's files of one launch: <folder>/attempt_0/<local rank>/error.json
    if (own := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return False
    return any(str(path) != own for path in Path(own).parents[1].glob("*/error.json"))
