"""The controlled sentiment experiment of the DPO paper (arXiv 2305.18290, section 6.1) in small: all of it.

    python recipes/controlled_sentiment/run.py

It makes sentences, the fine-tuned reference, rankings, the learned reward, the runs of grid.yaml and best-of-n of the
reference, then compares all of them. Finished steps are skipped, so a stopped experiment continues when it is started
again; an interrupted step or run starts over. Delete outputs/controlled_sentiment to start from nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml

from trl_dpo_ext.record import hardware, write_json

HERE = Path("recipes/controlled_sentiment")
OUTPUT = Path("outputs/controlled_sentiment")
DATA, PAIRS, SFT, RUNS = (OUTPUT / name for name in ("data", "pairs", "sft", "runs"))
BUDGETS = (1, 2, 4, 8, 16)  # nats
PYTHON = sys.executable


def device() -> list[str]:
    """Return the option that turns off the recipes' `use_cpu` if there is a GPU."""
    return ["--use_cpu", "false"] if torch.accelerator.is_available() else []


def preparation() -> dict[str, list[str]]:
    """Return the commands that prepare the runs, by name, in order."""
    model = subprocess.run([PYTHON, "recipes/quickstart/model.py"], stdout=subprocess.PIPE, text=True, check=True)
    folder = model.stdout.splitlines()[-1]
    return {
        "sentences": [str(HERE / "sentences.py"), str(OUTPUT / "sentences")],
        "sft": ["-m", "trl.scripts.sft", "--config", str(HERE / "sft.yaml"), "--model_name_or_path", folder, *device()],
        "data": ["recipes/quickstart/build_data.py", "--model", str(SFT), "--output", str(DATA), "--new-tokens", "16"],
        "pairs": [str(HERE / "pairs.py"), str(DATA), str(PAIRS)],
        "reward_model": ["-m", "trl.scripts.reward", "--config", str(HERE / "reward_model.yaml"), *device()],
    }


def grid() -> dict[str, dict[str, Any]]:
    """Return the settings that each run changes, by name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "grid.yaml").read_text())
    return found


def sweeps(names: list[str], jobs: int) -> dict[str, list[str]]:
    """Write the runs of preference losses among `names` into a file for each job; return the commands that train them.

    The runs of a sweep share the loaded model and the reference's log-probs. A sweep itself skips its finished runs.
    """
    settings = {name: one for name, one in grid().items() if name in names and "recipe" not in one}
    commands = {}
    for number in range(min(jobs, len(settings))):
        file = OUTPUT / "sweeps" / f"{number}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(dict(list(settings.items())[number::jobs]), sort_keys=False))
        sweep = ["-m", "trl_dpo_ext", "sweep", str(HERE / "preferences.yaml"), "--runs", str(file)]
        (OUTPUT / "done" / f"sweep-{number}.json").unlink(missing_ok=True)  # it may have had other runs
        commands[f"sweep-{number}"] = [*sweep, "--output_dir", str(RUNS), *device()]
    return commands


def rl_runs(names: list[str]) -> dict[str, list[str]]:
    """Return the commands of the RL runs among `names`."""
    commands = {}
    for name, settings in grid().items():
        if name not in names or "recipe" not in settings:
            continue
        changed = {**settings, "output_dir": str(RUNS / name)}
        options = [part for key, value in changed.items() if key != "recipe" for part in (f"--{key}", str(value))]
        commands[name] = ["recipes/rloo.py", "--config", str(HERE / "rloo.yaml"), *options, *device()]
    return commands


def best_of_n(preferences: dict[str, Any]) -> list[str]:
    """Return the command that computes best-of-n of the reference, on the prompts of the runs."""
    given = {
        "data": DATA,
        "reward": preferences["reward"],
        "prompts": preferences["eval_prompts"],
        "max-new-tokens": preferences["eval_max_new_tokens"],
        "samples": 16,
        "json": OUTPUT / "best_of_n.json",
    }
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return ["-m", "trl_dpo_ext", "eval", "best-of-n", str(SFT), "--first", *options]


def compare_runs(names: list[str]) -> Path:
    """Plot finished runs, write all results into one file, and return its path."""
    frontier, report = OUTPUT / "frontier", OUTPUT / "frontier.json"
    command = ["-m", "trl_dpo_ext", "eval", "frontier", *(str(RUNS / name) for name in names)]
    command += ["--baseline", "dpo", "--budgets", *map(str, BUDGETS), "--best-of-n", str(OUTPUT / "best_of_n.json")]
    command += ["--output", str(frontier), "--json", str(report)]
    subprocess.run([PYTHON, *command], check=True)
    done = {path.stem: json.loads(path.read_text()) for path in sorted((OUTPUT / "done").glob("*.json"))}
    done |= {name: json.loads((RUNS / name / "result.json").read_text()) for name in names if name not in done}
    record = {
        **json.loads(report.read_text()),
        "grid": {name: settings for name, settings in grid().items() if name in names},
        "seconds": {name: entry["seconds"] for name, entry in done.items()},
        "hardware": hardware(),
    }
    write_json(OUTPUT / "results.json", record)
    return OUTPUT / "results.json"


def finish(name: str, command: list[str], threads: int) -> bool:
    """Run a command unless it has finished before. Return whether it is finished now."""
    done, log = (OUTPUT / folder / f"{name}.{end}" for folder, end in (("done", "json"), ("logs", "txt")))
    if done.exists():
        return True
    for path in (done, log):
        path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')} {name}: {shlex.join(['python', *command])}", flush=True)
    started = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(log, "w") as file:
        code = subprocess.run([PYTHON, *command], stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        print(f"{name} failed with exit code {code}; the end of {log}:\n{log.read_text()[-1500:]}", flush=True)
        return False
    record: dict[str, Any] = {"command": command, "seconds": round(time.time() - started, 1)}
    write_json(done, record)
    return True


def main(arguments: list[str] | None = None) -> None:
    """Prepare, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, which share the cores (default: 2)")
    parser.add_argument("--only", nargs="+", default=["*"], help="names or patterns of runs (default: all)")
    options = parser.parse_args(arguments)
    chosen = [name for name in grid() if any(fnmatch(name, one) for one in options.only)]
    if not chosen:
        sys.exit(f"No run matches {' '.join(options.only)}. Runs: {', '.join(grid())}.")
    cores = len(os.sched_getaffinity(0))
    for name, command in preparation().items():
        if not finish(name, command, cores):
            sys.exit(1)
    preferences = yaml.safe_load((HERE / "preferences.yaml").read_text())
    tasks = {**sweeps(chosen, options.jobs), **rl_runs(chosen), "best_of_n": best_of_n(preferences)}
    with ThreadPoolExecutor(options.jobs) as pool:
        threads = max(1, cores // options.jobs)
        finished = list(pool.map(lambda item: finish(*item, threads), tasks.items()))
    if not all(finished):
        sys.exit(f"{finished.count(False)} of {len(finished)} commands failed. Start again to retry them.")
    print(f"Saved: {compare_runs(chosen)}, and the plot in {OUTPUT / 'frontier'}.")


if __name__ == "__main__":
    main()
