"""Mutation testing of the losses: change their code in small ways and see whether a test fails.

    pip install cosmic-ray==8.7.0
    python -m tests.mutation [FILES] [--jobs 2] [--out mutation.jsonl]

Cosmic-ray's operators make the changes. One process loads torch and the test runner. Each mutant gets a fork of it that
imports the package with the changed file. The fork runs three stages: the values of the losses that depend on the file,
by direct calls, which kills most mutants in a tenth of a second; then every check of `trl_dpo_ext.testing`; then the
remaining tests. Verdicts are appended to the output as they come, in a shuffled order that is the same in every run. So
an interrupted run is a fair sample, and the next run continues it. Survivors run again when the tests have changed;
delete the output to run all mutants again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from tests.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    *sorted((ROOT / "tests/losses").glob("*.py")),
    ROOT / "tests/losses/transcriptions.py",
    *sorted((ROOT / "trl_dpo_ext/testing").glob("*.py")),
]


# The three stages, run in the fork. A stage raises if it notices the change.


def concerned(module: str) -> list[Any]:
    """Return the losses whose module is this one or imports something from it."""
    from trl_dpo_ext.losses import list_losses

    def sources(spec: Any) -> set[str | None]:
        names = vars(sys.modules[spec.fn.__module__]).values()
        return {spec.fn.__module__, *(getattr(value, "__module__", None) for value in names)}

    return [spec for spec in list_losses() if module in sources(spec)]


def values(path: str, module: str) -> None:
    """Compare the losses' values with their transcriptions."""
    from tests.losses import test_values

    names = {spec.name for spec in concerned(module)}
    for case in test_values.settings():
        spec, hyperparameters = case.values
        if spec.name in names:
            test_values.test_value(spec, hyperparameters)


def checks(path: str, module: str) -> None:
    """Check the docs page, the relations, and what holds for every loss."""
    from tests.losses import test_every_loss, test_loss_docs, test_relations

    test_loss_docs.test_generated_text_is_up_to_date("docs/losses.md")
    for test in test_relations.RELATIONS.values():
        test()
    for spec in concerned(module):
        test_every_loss.test_docstring_has_its_sections_in_order(spec)
        test_every_loss.test_has_a_transcription_with_the_same_defaults(spec)
        for check in test_every_loss.CHECKS:
            check(spec)
        test_every_loss.test_direction(spec)
        test_every_loss.test_length_normalized_is_declared_where_only_means_per_token_count(spec)
        test_every_loss.test_couples_batch_is_declared_where_pairs_depend_on_each_other(spec)


def rest(path: str, module: str) -> None:
    """Run the remaining tests and the module's examples with pytest."""
    import pytest

    done = ("test_values.py::test_value[", "test_every_loss.py::test_check[", "test_every_loss.py::test_direction[")
    chosen = ["tests/losses", path, *(f"--deselect=tests/losses/{test}" for test in done)]
    if Path(path).parent.name != "families":
        chosen += ["tests/test_cli.py", "tests/training/test_config.py"]
    else:
        chosen.append("--ignore=tests/losses/test_loss_checks.py")  # it registers its own losses
    options = ["-x", "-q", "-p", "no:cacheprovider", "--noconftest", "--assert=plain", "-W", "ignore"]
    with tempfile.TemporaryDirectory() as folder:
        assert pytest.main([*options, f"--basetemp={folder}/pytest", *chosen]) == 0


STAGES = (values, checks, rest)
SECONDS = 120  # processor time; a stage takes a small part of it
SURVIVED, KILLED, NO_IMPORT = range(3)


def fork(stage: Any, mutant: Mutant) -> int:
    """Run a stage in a fork that imports the mutant; its exit status is the verdict."""
    if pid := os.fork():
        return pid
    status = NO_IMPORT
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        original = SourceFileLoader.get_code

        def get_code(self: SourceFileLoader, name: str) -> Any:
            if self.path != str(ROOT / mutant.path):
                return original(self, name)
            return compile(mutant.source, self.path, "exec", dont_inherit=True)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
        module = mutant.path.removesuffix(".py").replace("/", ".")
        importlib.import_module("trl_dpo_ext.losses")
        importlib.import_module(module)
        status = KILLED
        stage(mutant.path, module)
        status = SURVIVED
    finally:
        os._exit(status)


def run(stage: Any, mutants: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant with what killed it, "" for a survivor."""
    queue, running = mutants[::-1], {}
    while queue or running:
        while queue and len(running) < jobs:
            mutant = queue.pop()
            running[fork(stage, mutant)] = mutant
        pid, status = os.wait()
        verdicts = {SURVIVED: "", KILLED: stage.__name__, NO_IMPORT: "import"}
        yield running.pop(pid), verdicts.get(os.waitstatus_to_exitcode(status), "timeout or crash")


def preload() -> None:
    """Import everything that the tests import, except the package itself, so that forks needn't."""
    os.chdir(ROOT)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    from trl import DPOConfig, DPOTrainer  # noqa: F401

    torch.set_num_threads(1)
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(one, one)  # both import much at their first call
    torch.autograd.gradcheck(torch.sin, one)
    gc.freeze()  # garbage collection in a fork would copy all memory


def summary(mutants: list[Mutant], killed: dict[str, str], passed: dict[str, int]) -> Iterator[str]:
    """Yield Markdown: a table by file, what killed the mutants, and each survivor."""
    survivors = [m for m in mutants if m.key not in killed and passed.get(m.key) == len(STAGES)]
    yield "| File | Mutants | Killed | Survived | Not run | Killed of those run |\n" + "| --- " * 6 + "|"
    for path in [*sorted({m.path for m in mutants}), "trl_dpo_ext/losses"]:
        every = sum(m.path.startswith(path) for m in mutants)
        dead = sum(m.path.startswith(path) and m.key in killed for m in mutants)
        alive = sum(m.path.startswith(path) for m in survivors)
        rate = f"{dead / (dead + alive):.1%}" if dead + alive else "-"
        yield f"| `{path.rpartition('/')[2]}` | {every} | {dead} | {alive} | {every - dead - alive} | {rate} |"
    by = Counter(killed[m.key] for m in mutants if m.key in killed)
    yield "\nKilled by: " + ", ".join(f"{how} {count}" for how, count in by.most_common()) + "."
    for mutant in sorted(survivors, key=lambda mutant: (mutant.path, mutant.line)):
        yield "\n".join([f"\n{mutant.path}:{mutant.line} {mutant.operator}", *mutant.diff])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=sorted((ROOT / "trl_dpo_ext/losses").rglob("*.py")))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"))
    arguments = parser.parse_args()

    left_out: Counter[str] = Counter()
    names = [path.resolve().relative_to(ROOT).as_posix() for path in arguments.files]
    made = [mutant for name in names for mutant in mutants_of(ROOT, name, left_out)]
    mutants = sorted({mutant.key: mutant for mutant in made}.values(), key=lambda mutant: mutant.key)
    print("Left out: " + "; ".join(f"{count} {reason}" for reason, count in left_out.most_common()) + ".")
    version = hashlib.sha256(b"".join(path.read_bytes() for path in TESTS)).hexdigest()[:16]
    killed: dict[str, str] = {}  # by key: the stage that did it
    passed: dict[str, int] = {}  # by key: how many stages noticed nothing
    for row in map(json.loads, arguments.out.read_text().splitlines() if arguments.out.exists() else []):
        if row["killed"]:
            killed[row["key"]] = row["killed"]
        elif row["tests"] == version:
            passed[row["key"]] = row["passed"]

    preload()
    for number, stage in enumerate(STAGES):
        todo = [m for m in mutants if m.key not in killed and passed.get(m.key, 0) == number]
        paths = sorted({m.path for m in todo})
        for same, verdict in run(stage, [Mutant("", p, 0, "", (ROOT / p).read_text(), []) for p in paths], 1):
            if verdict:
                sys.exit(f"{same.path} fails in the stage {stage.__name__!r} without a mutation ({verdict}).")
        print(f"{time.strftime('%H:%M:%S')} {stage.__name__}: {len(todo)} mutants", flush=True)
        with arguments.out.open("a") as out:
            for mutant, verdict in run(stage, todo, arguments.jobs):
                if verdict:
                    killed[mutant.key] = verdict
                passed[mutant.key] = number + 1
                row = {"key": mutant.key, "killed": verdict, "passed": number + 1, "tests": version}
                print(json.dumps(row | {"path": mutant.path, "diff": mutant.diff}), file=out, flush=True)
    print("\n".join(summary(mutants, killed, passed)))


if __name__ == "__main__":
    main()
