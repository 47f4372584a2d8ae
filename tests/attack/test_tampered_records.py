"""Damaged records, adapters, weights and caches, thousands of them: each command works, or says in a sentence why not.

A seeded fuzzer damages one file of a sound folder at a time, and runs every command and public reader that reads it, in
this process. What comes out must be a result, or one of the package's own errors: never a traceback, and never the base
model in place of an adapter whose weights were not taken.

`ATTACK_SECONDS` sets how long it runs, `ATTACK_RECORDS` how many records it damages at least; both may be set by hand:

    ATTACK_RECORDS=5000 pytest tests/attack/test_tampered_records.py

The counts of the last long run are in results/tampered_records.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import helpers
from tests.attack import tampering
from tests.hub import support
from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import read_frontier
from trl_dpo_ext.hub import make_card, push_run, read_run
from trl_dpo_ext.record import write_json
from trl_dpo_ext.reference import ReferenceIdentity
from trl_dpo_ext.run.user_errors import USER_ERRORS
from trl_dpo_ext.training.safety.checkpoint import find_checkpoint, why_incomplete

RECORDS = int(os.environ.get("ATTACK_RECORDS", 0))
SEED = int(os.environ.get("ATTACK_SEED", 0))
RESULTS = Path(__file__).parent / "results" / "tampered_records.json"


@dataclass(frozen=True)
class Target:
    """A file, how it is damaged, and what reads it."""

    file: str
    tamper: Callable[[Path, random.Random], str]
    readers: tuple[str, ...]
    weight: int = 1


def curve_report() -> dict[str, Any]:
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75, "level": 0.95}
    return {
        "reward": "vader",
        "prompts": 2,
        "prompts_sha256": "0",
        "max_new_tokens": 4,
        "temperature": 1.0,
        "curve": [{"n": n, "reward": interval, "standard_error": 0.1, "kl_bound": 0.5} for n in (1, 2)],
    }


def frontier() -> dict[str, Any]:
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75, "level": 0.95}
    kl = {"mean": 1.0, "standard_error": 0.5, "summed": 1.0, "summed_standard_error": 0.5}
    points = [
        {"step": step, "reward": interval, "kl": kl, "rewards": [0.5, 0.5 + step], "kls": [1.0, 1.0]}
        for step in (0, 100)
    ]
    settings = {
        "reward": "vader",
        "prompts": 2,
        "prompts_sha256": "0",
        "max_new_tokens": 4,
        "temperature": 1.0,
        "seed": 0,
    }
    return {"format": 1, "method": "dpo", "settings": settings, "points": points, "versions": {}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run's folder with everything in it, a frontier beside it, and a copy of both."""
    root = tmp_path_factory.mktemp("world")
    base = helpers.save_tiny_model(root / "base")
    run = support.save_adapter(root / "sound" / "run", base, quantized=False)
    support.add_record(run)
    support.edit_json(run / "result.json", base={"dtype": "float32", "quantization": None})
    for name in ("run", "other"):
        (root / "sound" / name).mkdir(exist_ok=True)
        write_json(root / "sound" / name / "frontier.json", frontier())
    (run / "reference.json").write_text(json.dumps({"kind": "second_model", "description": "x", "fingerprint": "0"}))
    write_json(root / "sound" / "curve.json", curve_report())
    shutil.copytree(base, root / "sound" / "model")
    difference = dict.fromkeys(("kl_mean", "kl_max", "logit_difference_max", "same_top1"), 0.5)
    merge = {
        "into": "trained",
        "dtype": "float16",
        "base_model": "x/y",
        "quantization": None,
        "prompts": 2,
        "difference": {"positions": 9, **difference},
        "versions": {},
    }
    write_json(root / "sound" / "model" / "merge.json", merge)
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in support.PROMPTS[:2]]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(root / "sound", root / "world")
    return root


def commands(root: Path) -> dict[str, Callable[[], Any]]:
    """Return what reads the folder; a command's exit code 0 or 2 is as good as a result or an error."""
    world = root / "world"
    run, model = str(world / "run"), str(world / "model")

    def command(*arguments: str) -> Callable[[], Any]:
        def call() -> None:
            code = main(list(arguments))
            if code not in (0, 2):
                raise AssertionError(f"exit code {code}")
            if code == 2:
                raise Refused

        return call

    def merge() -> Any:
        shutil.rmtree(root / "merged", ignore_errors=True)
        return command("merge", run, str(root / "merged"), "--device", "cpu", "--dtype", "float32")()

    sample = ("--data", str(root / "rows.jsonl"), "--split", "train", "--max-new-tokens", "1", "--prompts", "2")
    offline = {"base_model": "x/y", "token": "hf_none_of_these"}
    return {
        "card": command("card", run, "--base-model", "x/y"),
        "card of the model": command("card", model),
        "read_run": lambda: read_run(run),
        "make_card": lambda: make_card(run),
        "push": lambda: push_run(run, "x/y", **offline),
        "push the model": lambda: push_run(model, "x/y", **offline),
        "merge": merge,
        "sample": command("eval", "sample", run, str(root / "samples.jsonl"), *sample),
        "sample the model": command("eval", "sample", model, str(root / "samples.jsonl"), *sample),
        "frontier": command("eval", "frontier", run, str(world / "other"), "--baseline", "dpo"),
        "best of n": command("eval", "frontier", run, "--best-of-n", str(world / "curve.json")),
        "read_frontier": lambda: read_frontier(run),
        "identity": lambda: ReferenceIdentity("second_model", "x", "0").check_checkpoint(run),
        "checkpoint": lambda: (why_incomplete(run), find_checkpoint(run, world)),
    }


CARDS = ("card", "read_run", "make_card", "push")
TARGETS = [
    Target("run/result.json", tampering.tamper_json, CARDS, 20),
    Target("run/reference.json", tampering.tamper_json, ("identity", *CARDS), 6),
    Target("run/recipe.yaml", tampering.tamper_yaml, CARDS, 6),
    Target("run/adapter_config.json", tampering.tamper_json, CARDS, 6),
    Target("run/adapter_config.json", tampering.tamper_json, ("merge", "sample"), 1),
    Target("run/adapter_model.safetensors", tampering.tamper_weights, ("push",), 4),
    Target("run/adapter_model.safetensors", tampering.tamper_weights, ("merge", "sample"), 1),
    Target("run/frontier.json", tampering.tamper_json, ("frontier", "read_frontier"), 12),
    Target("curve.json", tampering.tamper_json, ("best of n",), 4),
    Target("model/merge.json", tampering.tamper_json, ("card of the model", "push the model"), 4),
    Target("model/config.json", tampering.tamper_json, ("sample the model",), 1),
    Target("model/config.json", tampering.tamper_json, ("card of the model",), 1),
    Target("model/model.safetensors", tampering.tamper_weights, ("sample the model", "push the model"), 1),
]


class Refused(Exception):
    """A command ended with exit code 2 and a sentence."""


class NoHub(Exception):
    """A push passed all checks and would have reached the Hub."""


def outcome(read: Callable[[], Any]) -> tuple[str, str]:
    """Run a reader; return "ok", "refused" or "raw", and the message."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            read()
        return "ok", ""
    except NoHub:
        return "ok", ""
    except Refused:
        return "refused", printed.getvalue().split("error: ", 1)[-1]
    except USER_ERRORS as error:
        return "refused", str(error)
    except (Exception, SystemExit):
        return "raw", traceback.format_exc()


def is_a_sentence(message: str) -> bool:
    """Whether a message is for people: no traceback, no class names of other libraries, ends like a sentence."""
    return bool(message.strip()) and not re.search(r"Traceback|\bpydantic\b|<class '", message)


@pytest.mark.usefixtures("_no_hub")
def test_no_tampered_record_gives_a_traceback(world, seconds, capsys):
    draw = random.Random(SEED)
    readers = commands(world)
    for name, read in readers.items():
        if name != "checkpoint":
            assert outcome(read)[0] == "ok", f"{name} of the sound folder: {outcome(read)[1]}"
    counts: dict[str, Counter[str]] = {}
    raw: list[str] = []
    damaged, started = 0, time.monotonic()
    while time.monotonic() - started < seconds or damaged < RECORDS:
        target = draw.choices(TARGETS, [t.weight for t in TARGETS])[0]
        path = world / "world" / target.file
        kind = target.tamper(path, draw)
        damaged += 1
        for name in target.readers:
            result, message = outcome(readers[name])
            if result == "refused" and not is_a_sentence(message):
                result = "raw"
            counts.setdefault(f"{target.file}: {name}", Counter())[result] += 1
            if result == "raw":
                raw.append(f"record {damaged}, {target.file}, {kind}, {name}:\n{message}")
        tampering.restore(world / "world", world / "sound")
    total = Counter[str]()
    for counter in counts.values():
        total += counter
    report = {
        "records": damaged,
        "seed": SEED,
        "outcomes": dict(total),
        "by file and reader": {name: dict(sorted(counts[name].items())) for name in sorted(counts)},
    }
    with capsys.disabled():
        print(f"\ntampered records: {damaged}, {dict(total)}")
    if RECORDS >= 5000 and not raw:
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, report)
    if raw:
        Path(os.environ.get("ATTACK_LOG", os.devnull)).write_text("\n\n".join(raw))
    assert not raw, f"{len(raw)} raw outcomes, the first: {raw[0]}"


@pytest.fixture
def _no_hub(monkeypatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise NoHub

    monkeypatch.setattr("trl_dpo_ext.hub.push.HfApi", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
