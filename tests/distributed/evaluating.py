"""Run by `test_engines_evaluate.py`: stored reference log-probs, rewards and frontiers with every engine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from tests import helpers
from tests.distributed import cases
from tests.distributed.forked import ENGINES, in_processes
from tests.distributed.sharded import weights
from tests.training import support
from trl_dpo_ext.run import train_recipe

CHOSEN = [name for name in ENGINES if name != "fsdp2_parts"]
STORED = ("plain", "ddp", "fsdp2", "zero2")
METHODS = ("dpo", "lora")


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]


def stored(engine: str, method: str, model: str, folder: Path, cache: Path, resume: str | None = None) -> Any:
    """Train on stored reference log-probs. Two processes can't share the rows of `odd` equally."""
    processes = 1 if engine == "plain" else 2
    trainer = support.trainer(
        model,
        folder,
        helpers.ranked_dataset(2 * cases.PROMPTS, ties=True),
        eval_dataset={"even": helpers.ranked_dataset(4, seed=1), "odd": helpers.ranked_dataset(3, responses=(3, 3))},
        per_device_train_batch_size=cases.PROMPTS // processes,
        per_device_eval_batch_size=1,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=1,
        ref_cache_dir=str(cache),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        optim="adamw_torch",
        learning_rate=1e-3,
        use_cpu=engine in ("plain", "ddp"),
        **cases.CASES[method],
    )
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {"weights": weights(trainer), "logs": logs, "eval": metrics, "second": trainer.ref_model is not None}


def recipe(engine: str, method: str, model: str, folder: Path, data: str, resume: str | None = None) -> None:
    """Train as a recipe says, with a reward before and after, and a frontier."""
    settings = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": str(folder),
        "loss_type": "dpo",
        "use_peft": method == "lora",
        "lora_target_modules": ["q_proj", "v_proj"],
        "max_steps": 2,
        "per_device_train_batch_size": 4 if engine == "plain" else 2,
        "learning_rate": 0.01,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_checkpointing": False,
        "report_to": "none",
        "use_cpu": engine in ("plain", "ddp"),
        "bf16": False,
        "disable_tqdm": True,
        "reward": "tests.distributed.evaluating:vowels",
        "eval_prompts": 5,
        "eval_max_new_tokens": 6,
        "frontier_steps": 1,
        **({} if resume is None else {"resume_from_checkpoint": resume}),
    }
    own = folder.with_suffix(f".{os.environ.get('RANK', '0')}.yaml")
    own.write_text(yaml.safe_dump(settings))
    train_recipe(["--config", str(own)])


def one(name: str, engine: str, root: Path, work: Callable[[], Any]) -> None:
    def recorded(rank: int) -> None:
        try:
            result = work()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            (root / f"{name}.{rank}.json").write_text(json.dumps([text, traceback.format_exc()]))
            raise
        if rank == 0:
            torch.save(result, root / f"{name}.pt")

    print(name, in_processes(recorded, engine, 1 if engine == "plain" else 2), flush=True)


def main(model: str, folder: str, data: str) -> None:
    root = Path(folder)
    with contextlib.suppress(ImportError):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed  # noqa: F401  so that the forks needn't
    for engine in CHOSEN:
        for method in METHODS:
            run, recipes = f"{method}-{engine}", root / f"recipe-{method}-{engine}"
            work = partial(stored, engine, method, model, root / "runs" / run)
            if engine in STORED:
                one(f"stored-{run}", engine, root, partial(work, root / f"{run}-cache"))
            one(f"recipe-{run}", engine, root, partial(recipe, engine, method, model, recipes, data))
            if engine == "fsdp2":
                # Another, empty cache: with an adapter it is filled anew; full fine-tuning keeps no reference for that.
                checkpoint = str(root / "runs" / run / "checkpoint-1")
                one(f"resumed-{run}", engine, root, partial(work, root / f"{run}-new", checkpoint))
            (recipes / "result.json").rename(recipes / "first_result.json")
            if engine in ("fsdp2", "zero3"):
                checkpoint = str(recipes / "checkpoint-1")
                one(f"again-{run}", engine, root, partial(recipe, engine, method, model, recipes, data, checkpoint))


if __name__ == "__main__":
    main(*sys.argv[1:])
