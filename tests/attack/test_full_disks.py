"""A disk that is full at any write of a run: a sentence, and the same end once there is room again."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tests.attack.kills import SCENARIOS, Attack, Events, different_states, end_of, trainer
from tests.training import forks
from trl_dpo_ext.run import USER_ERRORS


class FullDisk(Events):
    """From its n-th write on, no file can be written or made in a folder; renaming and deleting go on.

    Args:
        folder: the folder.
        number: the write that fails first; None only counts.
    """

    def __init__(self, folder: Path, number: int | None) -> None:
        super().__init__(folder, None, lambda path: None)
        self.number = number

    def full(self) -> bool:
        """Count a write, and return whether it fails."""
        self.happened("file")
        return self.number is not None and self.counts["file"] >= self.number

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (opens or event == "os.mkdir") and str(args[0]).startswith(self.folder) and self.full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    def _around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Fail as each writer does, with half of the file written."""

        def limited(*args: Any, **kwargs: Any) -> Any:
            paths = [Path(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, str | Path)]
            outside = paths and not str(paths[0]).startswith(self.folder)
            if outside or not self.full():
                return write(*args, **kwargs)
            if not paths:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            number, self.number = self.number, None
            write(*args, **kwargs)
            self.number = number
            os.truncate(paths[0], paths[0].stat().st_size // 2)
            if write.__module__.startswith("safetensors"):
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
            )

        return limited


def filled_at(folder: Path, number: int | None, leave: int) -> Events:
    """Return events that fill the disk at the n-th one, up to so many bytes."""

    def fill(path: Path | None) -> None:
        with open(folder.parent / "filler", "wb") as filler:
            filler.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))

    return Events(folder, None if number is None else ("file", number), fill)


def run(model_dir: str, folder: Path, scenario: str, disk: Events, report: Path) -> dict[str, Any]:
    """Train in a forked process; return its end, its number of writes, and the error if there was one."""

    def work() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        result: dict[str, Any]
        try:
            one = trainer(model_dir, folder, scenario)
            disk.listen()
            one.train(resume_from_checkpoint=True)
            result = end_of(one)
        except USER_ERRORS as error:
            result = {"refused": f"{type(error).__name__}: {error}"}
        except Exception as error:
            result = {"raw": f"{type(error).__name__}: {error}"}
        report.write_text(json.dumps({**result, "writes": disk.counts["file"]}))

    assert forks.in_child(work) == 0
    return dict(json.loads(report.read_text()))


def assert_same_end(found: dict[str, Any], expected: dict[str, Any], case: Any) -> None:
    faults = [name for name in ("weights", "logs") if found.get(name) != expected[name]]
    assert not faults + different_states(found.get("states", {}), expected["states"], set()), (case, found)


@pytest.mark.slow
def test_full_disks(seconds, seed, tiny_model_dir, tmp_path):
    rng, end, trials = random.Random(seed), time.monotonic() + seconds, 0
    wholes = Attack(tiny_model_dir, tmp_path, seed)
    folder, report = tmp_path / "run", tmp_path / "report.json"
    while not trials or time.monotonic() < end:
        scenario = rng.choice(list(SCENARIOS))
        expected, number = wholes.whole(scenario), rng.randint(1, 60)
        case = (seed, scenario, number)
        failed = run(tiny_model_dir, folder, scenario, FullDisk(folder, number), report)
        assert "raw" not in failed, (case, failed)
        if number <= failed["writes"]:
            assert re.search("No space left|can't be written", failed["refused"]), (case, failed)
        assert_same_end(run(tiny_model_dir, folder, scenario, FullDisk(folder, None), report), expected, case)
        shutil.rmtree(folder)
        trials += 1
    print(f"\n{trials} full disks, seed {seed}: each a sentence, and the same end with room again.")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_meanwhile(seconds, seed, tiny_model_dir, tmp_path, small_disk):
    """A real file system, filled by somebody else in the middle of a run up to a few bytes or kilobytes."""
    rng, end, trials, refused = random.Random(seed), time.monotonic() + seconds, 0, 0
    wholes = Attack(tiny_model_dir, tmp_path, seed)
    folder, report = small_disk / "run", tmp_path / "report.json"
    while trials < 3 or time.monotonic() < end:
        scenario = rng.choice(list(SCENARIOS))
        expected, number = wholes.whole(scenario), rng.randint(1, 60)
        leave = rng.choice([0, rng.randrange(4096), rng.randrange(200_000)])
        case = (seed, scenario, number, leave)
        failed = run(tiny_model_dir, folder, scenario, filled_at(folder, number, leave), report)
        assert "raw" not in failed, (case, failed)
        if "refused" in failed:
            refused += 1
            assert re.search("No space left|can't be written|free", failed["refused"]), (case, failed)
        (small_disk / "filler").unlink(missing_ok=True)
        assert_same_end(run(tiny_model_dir, folder, scenario, filled_at(folder, None, 0), report), expected, case)
        shutil.rmtree(folder)
        trials += 1
    assert refused
    print(f"\n{trials} disks filled meanwhile, {refused} runs refused, seed {seed}: the same end with room again.")
