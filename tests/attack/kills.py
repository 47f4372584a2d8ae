"""Kill runs at file events and in the middle of steps, resume them, and compare with runs that nobody killed.

python -m tests.attack.kills --trials 200 --out tests/attack/results/kills.json
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests import helpers
from tests.training import forks, support

BASE: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 3e-3,
    "disable_dropout": False,
    "max_steps": 4,
}
EPOCHS: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2}
# Each trains on 3 rows: an epoch has three steps, or two with accumulation.
SCENARIOS: dict[str, dict[str, Any]] = {
    "the end is in the middle of an epoch": {"warmup_steps": 1, "lr_scheduler_type": "cosine"},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 3},
    "saved and evaluated after epochs": {**EPOCHS, "save_strategy": "epoch", "eval_strategy": "epoch"},
    "saved after steps, evaluated after epochs": {**EPOCHS, "save_steps": 3, "eval_strategy": "epoch"},
    "logged after epochs, one checkpoint": {**EPOCHS, "logging_strategy": "epoch", "save_total_limit": 1},
    "the best model": {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "save_total_limit": 1,
    },
    "a stream": {"streaming": True, "max_steps": 3, "save_steps": 1},
    "all weights and running means": {"lora": False, "loss_type": ["bco", "beta_dpo"], "lr_scheduler_type": "linear"},
    "a moving reference": {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
    "stored log-probs": {"precompute_ref_log_probs": True, "num_train_epochs": 1.5, "max_steps": -1},
}
CALLBACKS = (
    *("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_epoch_end"),
    *("on_prediction_step", "on_evaluate", "on_log", "on_save", "on_train_end"),
)
_FILE_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "shutil.move"}


class Events:
    """Counts the file events in a folder and the training events of this process, and acts at one of them.

    A file written by torch or safetensors in C++ is two events: before it, and after it, when `act` may still cut it.

    Args:
        folder: where file events count.
        at: the kind ("file" or "training") and number of the event to act at; None only counts.
        act: called with the file just written, or None.
    """

    def __init__(self, folder: Path, at: tuple[str, int] | None, act: Callable[[Path | None], None]) -> None:
        self.folder, self.at, self.act = str(folder), at, act
        self.counts: Counter[str] = Counter()

    def listen(self) -> None:
        """Start counting. There is no way back: call it in a forked process."""
        sys.addaudithook(self._audit)
        for owner, name in ((torch, "save"), (safetensors.torch, "save_file"), (os, "fsync")):
            setattr(owner, name, self._around(getattr(owner, name)))

    def happened(self, kind: str, path: Path | None = None) -> None:
        self.counts[kind] += 1
        if self.at == (kind, self.counts[kind]):
            self.at = None
            self.act(path)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in _FILE_EVENTS) and str(args[0]).startswith(self.folder):
            self.happened("file")

    def _around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.happened("file")
            result = write(*args, **kwargs)
            paths = [Path(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, str | Path)]
            self.happened("file", paths[0] if paths else None)
            return result

        return counted


class _Callback(TrainerCallback):
    def __init__(self, events: Events) -> None:
        self.events = events

    def __getattribute__(self, name: str) -> Any:
        if name in CALLBACKS:
            self.events.happened("training")
        return super().__getattribute__(name)


@dataclass(frozen=True)
class Kill:
    """Where and how a run is killed.

    Attributes:
        at: kind and number of the event.
        signal: SIGKILL, or SIGTERM, which the run may answer with a checkpoint.
        cut: cut the file just written to half its length first.
    """

    at: tuple[str, int]
    signal: int
    cut: bool

    def __call__(self, path: Path | None) -> None:
        if self.cut and path is not None and path.is_file():
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), self.signal)


def trainer(model_dir: str, folder: Path, scenario: str, events: Events | None = None) -> Any:
    settings = {**BASE, **SCENARIOS[scenario]}
    data: Any = Dataset.from_list(helpers.ranked_rows(3, responses=(2, 3)))
    if settings.pop("streaming", False):
        data = data.to_iterable_dataset()
    if settings.pop("lora", True):
        settings["peft_config"] = support.lora(lora_dropout=0.2, target_modules=["q_proj"])
    return support.trainer(
        model_dir,
        folder,
        data,
        eval_dataset=helpers.ranked_dataset(1, seed=1),
        callbacks=[_Callback(events)] if events else None,
        **settings,
    )


def run(model_dir: str, folder: Path, scenario: str, kill: Kill | None, report: Path | None) -> int:
    """Train in a forked process, resuming what is there; return its status. Its end goes into `report`."""

    def work() -> None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        events = Events(folder, kill and kill.at, kill or (lambda path: None))
        one = trainer(model_dir, folder, scenario, events)
        events.listen()
        error = None
        try:
            one.train(resume_from_checkpoint=True)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        counts = dict(events.counts)
        if report is not None:
            report.write_text(json.dumps({"error": error, "events": counts, **(end_of(one) if not error else {})}))

    return forks.in_child(work)


def end_of(one: Any) -> dict[str, Any]:
    """Return what must be the same, killed or not: weights, logs, and the states in the checkpoints that are left."""
    weights = hashlib.sha256()
    for name, p in sorted(one.model.named_parameters()):
        weights.update(name.encode() + p.detach().contiguous().numpy().tobytes())
    logs = [
        {k: v for k, v in entry.items() if not any(part in k for part in ("runtime", "per_second"))}
        for entry in one.state.log_history
        if "train_runtime" not in entry
    ]
    states = {}
    for marker in sorted(Path(one.args.output_dir).glob("checkpoint-*/complete.json")):
        for name, value in json.loads(marker.read_text())["checksums"].items():
            if name.endswith((".pt", ".pth", ".safetensors", ".npy", "run_state.json")):
                states[f"{marker.parent.name}/{name}"] = value
    return {"weights": weights.hexdigest(), "logs": logs, "states": states, "step": one.state.global_step}


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "reference_cache" not in path.parts
    }


def last_written(folder: Path) -> str:
    """Return the name of the checkpoint that was written last."""
    return max(folder.glob("checkpoint-*/complete.json"), key=lambda path: path.stat().st_mtime_ns).parent.name


def different_states(found: dict[str, str], expected: dict[str, str], stopped: set[str]) -> list[str]:
    """Return a fault for each file of a checkpoint that differs.

    Args:
        found, expected: checksums by path.
        stopped: checkpoints that a SIGTERM had a run write. It adds one, or writes one anew after an evaluation that
            has moved the random state; and with a limit, another one goes.
    """
    if not stopped and found.keys() != expected.keys():
        return ["other checkpoints are left"]
    shared = [path for path in found.keys() & expected.keys() if path.partition("/")[0] not in stopped]
    return [f"{path} differs" for path in sorted(shared) if found[path] != expected[path]]


class Attack:
    """Trials of one seed over all scenarios.

    Args:
        model_dir: a tiny model.
        place: an empty folder.
        seed: of the trials.
    """

    def __init__(self, model_dir: str, place: Path, seed: int) -> None:
        self.model_dir, self.place, self.rng = model_dir, place, random.Random(seed)
        self.wholes: dict[str, dict[str, Any]] = {}
        gc.freeze()  # `train` collects garbage: scanning torch and TRL would take most of a tiny run's time

    def whole(self, scenario: str) -> dict[str, Any]:
        """Return the report of a run that nobody killed."""
        if scenario not in self.wholes:
            folder, report = self.place / "whole", self.place / "whole.json"
            assert run(self.model_dir, folder, scenario, None, report) == 0
            self.wholes[scenario] = json.loads(report.read_text())
            assert self.wholes[scenario]["error"] is None, self.wholes[scenario]["error"]
            shutil.rmtree(folder)
        return self.wholes[scenario]

    def kill(self, scenario: str) -> Kill:
        kind = "file" if self.rng.random() < 0.75 else "training"
        number = self.rng.randint(1, self.whole(scenario)["events"][kind])
        how = signal.SIGTERM if self.rng.random() < 0.15 else signal.SIGKILL
        return Kill((kind, number), how, how == signal.SIGKILL and self.rng.random() < 0.5)

    def trial(self, scenario: str) -> dict[str, Any]:
        """Kill a run once or twice, let it end, start it once more; return what happened, with `faults`."""
        expected = self.whole(scenario)
        folder, report = self.place / "run", self.place / "run.json"
        faults, kills, stopped = [], [], set()
        for _ in range(1 if self.rng.random() < 0.6 else 2):
            kill = self.kill(scenario)
            report.unlink(missing_ok=True)
            status = run(self.model_dir, folder, scenario, kill, report)
            if os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM:
                stopped.add(last_written(folder))
            kills.append({"at": list(kill.at), "signal": int(kill.signal), "cut": kill.cut, "status": status})
            if status == 0 and (error := json.loads(report.read_text())["error"]):
                faults.append(f"error: {error}")
        run(self.model_dir, folder, scenario, None, report)
        found = json.loads(report.read_text())
        faults += [f"{part} differ" for part in ("error", "weights", "logs") if found.get(part) != expected[part]]
        faults += different_states(found.get("states", {}), expected["states"], stopped)
        before = files_of(folder)
        run(self.model_dir, folder, scenario, None, report)
        again = json.loads(report.read_text())
        if files_of(folder) != before:
            faults.append("a finished run changed its files")
        faults += [
            f"{part} of a finished run differ" for part in ("weights", "step") if again.get(part) != expected[part]
        ]
        shutil.rmtree(folder, ignore_errors=True)
        return {"scenario": scenario, "kills": kills, "faults": faults}


def kills_of(trials: list[dict[str, Any]]) -> int:
    """Return how many runs a signal ended. A resumed run may be too short to reach its event."""
    return sum(kill["status"] != 0 for one in trials for kill in one["kills"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, trials = time.time(), []
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(helpers.save_tiny_model(Path(folder) / "model"), Path(folder), options.seed)
        for number in range(options.trials):
            trials.append(attack.trial(list(SCENARIOS)[number % len(SCENARIOS)]))
            result = {
                "trials": len(trials),
                "kills": kills_of(trials),
                "faults": sum(bool(one["faults"]) for one in trials),
                "by_scenario": dict(Counter(one["scenario"] for one in trials)),
                "seed": options.seed,
                "seconds": round(time.time() - started),
                "each": trials,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            if trials[-1]["faults"]:
                print(json.dumps(trials[-1]))
    print({key: value for key, value in result.items() if key != "each"})


if __name__ == "__main__":
    main()
