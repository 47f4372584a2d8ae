"""A checkpoint's records, damaged at random: each is taken, or refused with a sentence."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter

import numpy as np

from tests.attack import tampering
from trl_dpo_ext.training import CheckpointError
from trl_dpo_ext.training.safety.checkpoint import find_checkpoint
from trl_dpo_ext.training.safety.checkpoint_files import MARKER, read_marker, write_marker
from trl_dpo_ext.training.safety.engines import Engine, why_unreadable
from trl_dpo_ext.training.safety.run_identity import ROWS, RunIdentity
from trl_dpo_ext.training.safety.run_state import RUN_STATE, SavedMean, SavedState, read_state, write_state

ENGINE = Engine(name="DDP", processes=2, optimizer="torch.optim.adamw.AdamW")
SETTINGS = {
    "losses": {"dpo": {"weight": 1.0, "beta": 0.1}},
    "adapter": {"default": {"r": 4, "target_modules": ["q_proj"]}},
    "learning_rate": 1e-3,
    "model_init_kwargs": {"dtype": "float32"},
    "optim_args": None,
}


def test_no_tampered_checkpoint_gives_a_traceback(seconds, seed, tmp_path, capsys):
    sound, folder = tmp_path / "sound" / "checkpoint-2", tmp_path / "run" / "checkpoint-2"
    sound.mkdir(parents=True)
    (sound / "optimizer.pt").write_bytes(bytes(1000))
    means = {"bco": SavedMean(value=0.5, batches=2)}
    write_state(
        sound,
        SavedState(
            running_means=means, metrics={"loss": [0.5]}, train_tokens=9, loss=1.0, last_logged_step=1, run=SETTINGS
        ),
    )
    identity = RunIdentity(SETTINGS, None)
    identity._rows = np.arange(5, dtype=np.uint64)
    identity.save_rows(sound)
    write_marker(sound, True, ENGINE)

    def resume() -> str:
        try:
            found = find_checkpoint(folder, folder.parent, verify=False)
            assert found is not None
            if (engine := read_marker(found).engine) is not None:
                why_unreadable(engine, ENGINE)
            identity.check(found, read_state(found).run)
            find_checkpoint(folder, folder.parent)
            return "ok"
        except CheckpointError as error:
            sentence = str(error)
        assert str(folder.name) in sentence
        assert "Traceback" not in sentence
        return "refused"

    draw, end, counts = random.Random(seed), time.monotonic() + seconds, Counter[str]()
    shutil.copytree(sound, folder)
    assert resume() == "ok"
    while counts.total() < 300 or time.monotonic() < end:
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)
        name = draw.choice([MARKER, RUN_STATE, RUN_STATE, ROWS])
        if name != ROWS:
            tampering.tamper_json(folder / name, draw)
        elif draw.random() < 0.5:
            tampering.tamper_bytes(folder / name, draw)
        else:
            arrays = [np.arange(5.0), np.zeros((5, 2), np.uint64), np.array(5), np.array(["a"]), np.zeros(0, np.uint64)]
            np.save(folder / name, draw.choice(arrays))
        if name != MARKER and not (folder / name).is_symlink():  # what an enemy does, or an earlier version
            write_marker(folder, True, ENGINE)
        try:
            counts[f"{name} {resume()}"] += 1
        except Exception as error:
            content = (folder / name).read_bytes()[:2000]
            raise AssertionError(f"seed {seed}, {name} number {counts.total()}: {content!r}") from error
    with capsys.disabled():
        print(f"\n{counts.total()} tampered checkpoints, seed {seed}: {dict(counts)}")
