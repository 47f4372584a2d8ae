"""A data folder and a writer of small recipes, for tests that run recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ranked_rows


@pytest.fixture(scope="session")
def ranked_data(tmp_path_factory) -> Callable[[int], Path]:
    """Write 12 training rows with scores and so many test rows; return the folder. Don't write to it."""

    def write(test_rows: int) -> Path:
        folder = tmp_path_factory.mktemp("data")
        for name, count, seed in (("train", 12, 0), ("test", test_rows, 1)):
            rows = ranked_rows(count, seed=seed, scores=True)
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    return write


@pytest.fixture
def write_recipe(tmp_path, tiny_model_dir) -> Callable[..., list[str]]:
    """Write a LoRA recipe of two steps for the tiny model; settings override, None removes. Return its option."""

    def write(**changes: Any) -> list[str]:
        settings = {
            "model_name_or_path": tiny_model_dir,
            "output_dir": str(tmp_path / "out"),
            "loss_type": "plackett_luce",
            "use_peft": True,
            "lora_target_modules": "all-linear",
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
        return ["--config", str(path)]

    return write
