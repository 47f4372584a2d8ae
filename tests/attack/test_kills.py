"""Runs killed at any file event or training event end as if nobody had killed them; a finished run stays as it is."""

import random
import time

import pytest

from tests.attack.kills import SCENARIOS, Attack, kills_of


@pytest.mark.slow
def test_killed_runs_end_the_same(seconds, seed, tiny_model_dir, tmp_path):
    attack, end, trials = Attack(tiny_model_dir, tmp_path, seed), time.monotonic() + seconds, []
    names = random.Random(seed).sample(list(SCENARIOS), len(SCENARIOS))
    while not trials or time.monotonic() < end:
        trials.append(attack.trial(names[len(trials) % len(names)]))
        assert not trials[-1]["faults"], (seed, trials[-1])
    print(f"\n{len(trials)} trials, {kills_of(trials)} kills, seed {seed}: all ended the same.")
