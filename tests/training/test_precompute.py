"""The trainer computes reference log-probs once, stores them, and reads them in later runs.

The tests count forward passes in the model itself. Rows are padded unless a test says otherwise, so that only the
reference runs before training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from datasets import Dataset
from peft import get_peft_model

from tests import helpers
from tests.training import forks, support
from tests.traps.support import fresh, row_logps, token_logps
from trl_dpo_ext.modeling.forward import token_logps as forward_logps
from trl_dpo_ext.reference import fill_reference_cache as fill
from trl_dpo_ext.types import MissingReferenceError

pytestmark = pytest.mark.usefixtures("no_head_check")


def watched(folder: str) -> tuple[Any, list[int]]:
    """Return the model, and a list that grows with each forward pass."""
    model, forwards = fresh(folder), []
    model.get_input_embeddings().register_forward_hook(lambda *_: forwards.append(1))
    return model, forwards


def storing(model: Any, folder: Path, data: Any, **settings: Any) -> Any:
    """Return a trainer that stores in `folder/cache`, with batches so small that there are several."""
    return support.trainer(
        model,
        folder,
        data,
        **{
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": 2,
            "ref_cache_dir": str(folder / "cache"),
            **settings,
        },
    )


def all_stored(trainer: Any) -> torch.Tensor:
    """Return the stored values of the training dataset, [B, K, T]."""
    return support.batch(trainer)["ref_token_logps"]


def by_hand(model: Any, trainer: Any) -> torch.Tensor:
    """Return the expected values, from plain forward passes of single sequences."""
    expected = torch.zeros_like(all_stored(trainer), dtype=torch.float64)
    for b, row in enumerate(trainer.train_dataset):
        for k, ids in enumerate(row["completion_ids"]):
            expected[b, k, : len(ids)] = torch.tensor(token_logps(model, row["prompt_ids"], ids))
    return expected


@torch.no_grad()
def online(trainer: Any) -> torch.Tensor:
    """Return the values that the trainer computes in a training step."""
    inputs = support.batch(trainer)
    with trainer.reference() as reference:
        return forward_logps(reference, trainer.model.config, inputs)


# What is computed, and what is found


def test_other_settings_and_other_rows_find_everything(tiny_model_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="trl_dpo_ext")
    model, forwards = watched(tiny_model_dir)
    rows = helpers.ranked_rows(8, responses=(3, 5))
    data = Dataset.from_list(rows)
    storing(model, tmp_path, data, eval_dataset=helpers.ranked_dataset(3, seed=1))
    computed = len(forwards)
    assert computed > 4
    assert "train dataset: 0 of 31 responses found" in caplog.text
    assert "eval dataset: 0 of 9 responses found" in caplog.text

    pairs = [
        {"prompt": row["prompt"], "chosen": row["completions"][a], "rejected": row["completions"][b]}
        for row in rows
        for a in range(3)
        for b in range(a)
    ]
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "another loss": (data, {"loss_type": ["plackett_luce", "ipo"], "beta": 0.7}),
        "another run": (data, {"learning_rate": 1e-5, "seed": 5, "output_dir": str(tmp_path / "elsewhere")}),
        "other weights of tokens": (data, {"ld_alpha": 0.3}),
        "other batches": (data, {"precompute_ref_batch_size": 7, "per_device_train_batch_size": 1}),
        "another order": (data.shuffle(seed=3), {}),
        "some rows": (data.select([1, 5]), {}),
        "pairs of them": (Dataset.from_list(pairs), {"pairing": "adjacent"}),
        "another split": (helpers.ranked_dataset(3, seed=1), {}),
    }
    for name, (other, settings) in cases.items():
        forwards.clear()
        caplog.clear()
        trainer = storing(model, tmp_path, other, **settings)
        assert not forwards, name
        line = next(r.getMessage() for r in caplog.records if "responses found" in r.getMessage())
        found, total = line.partition(": ")[2].split(" responses")[0].split(" of ")
        assert int(found) == int(total) > 0, name
        assert support.distance(all_stored(trainer), by_hand(model, trainer)) < 1e-5, name
        assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0


def test_one_base_model_is_one_reference(tiny_model_dir, tmp_path):
    """Full fine-tuning, a second model, and a disabled adapter share stored values."""
    base, forwards = watched(tiny_model_dir)
    data = helpers.ranked_dataset(6)
    first = storing(base, tmp_path, data)
    assert len(forwards) > 1
    forwards.clear()
    second = storing(
        helpers.tiny_model(helpers.tiny_tokenizer(), seed=4),
        tmp_path,
        data,
        ref_model=base,
        processing_class=first.processing_class,
    )
    adapter = storing(base, tmp_path, data, peft_config=support.lora())
    assert not forwards
    assert torch.equal(all_stored(first), all_stored(second))
    assert torch.equal(all_stored(first), all_stored(adapter))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def trained_adapter(folder: str) -> Any:
    torch.manual_seed(5)
    return get_peft_model(fresh(folder), support.lora(init_lora_weights=False)).eval()


KINDS: dict[str, tuple[Callable[[str], Any], dict[str, Any], Callable[[str], Any]]] = {
    "full fine-tuning": (fresh, {}, fresh),
    "second model": (fresh, {"ref_model": 3}, lambda _: helpers.tiny_model(helpers.tiny_tokenizer(), seed=3)),
    "adapter off": (fresh, {"peft_config": support.lora()}, fresh),
    "starting adapter": (trained_adapter, {}, trained_adapter),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_online_agree_in_every_layout(kind, tiny_model_dir, tmp_path):
    make, settings, reference = KINDS[kind]
    data = helpers.ranked_dataset(6, responses=(2, 4))
    values: dict[str, torch.Tensor] = {}
    for layout in ("padded", "shared_packed"):
        for stored in (True, False):
            more = {**settings, "precompute_ref_log_probs": stored, **support.LAYOUTS[layout]}
            if "ref_model" in more:
                more["ref_model"] = reference(tiny_model_dir)
            trainer = storing(make(tiny_model_dir), tmp_path / layout, data.select([0]), **more)
            # The remaining values are computed after the adapter has changed, as in a later evaluation.
            with torch.no_grad():
                for name, weight in trainer.model.named_parameters():
                    if "lora_B.default" in name:
                        weight.normal_()
            trainer.train_dataset = trainer.prepare_dataset(data, "late")
            if stored:
                trainer._stored.fill(trainer.train_dataset, "late", 2)
            values[f"{layout}, online"] = online(trainer)
            if stored:
                values[f"{layout}, stored"] = all_stored(trainer)
                expected = by_hand(reference(tiny_model_dir), trainer)
    assert len(values) == 4
    for name, got in values.items():
        assert support.distance(got, expected) < 1e-5, name


def test_workers_of_a_dataloader_read_the_same(tiny_model_dir, tmp_path):
    trainer = storing(tiny_model_dir, tmp_path, helpers.ranked_dataset(6))
    collator = pickle.loads(pickle.dumps(trainer.data_collator))
    assert torch.equal(collator(list(trainer.train_dataset))["ref_token_logps"], all_stored(trainer))
    # Rows can be shuffled and filtered afterwards, because the cache key is the tokens.
    chosen = trainer.train_dataset.shuffle(seed=1).select([4, 0])
    batch = collator(list(chosen))
    model = fresh(tiny_model_dir)
    for row, values in zip(chosen, batch["ref_token_logps"], strict=True):
        assert values.sum().item() == pytest.approx(sum(row_logps(model, row)), rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_streamed_rows_are_computed_online(kind, tiny_model_dir, tmp_path, caplog):
    data = helpers.ranked_dataset(6)
    peft = {"peft_config": support.lora()} if kind == "adapter" else {}
    losses = {}
    for name, rows in {"streamed": data.to_iterable_dataset(), "indexed": data}.items():
        model, forwards = watched(tiny_model_dir)
        torch.manual_seed(0)  # of the new adapter
        trainer = storing(model, tmp_path / name, rows, eval_dataset=data, learning_rate=0.03, **peft)
        if name == "streamed":
            assert "streamed" in caplog.text
            assert not forwards
            assert not (tmp_path / name / "cache").exists()
            assert trainer.args.precompute_ref_log_probs  # the user's settings are unchanged
        # In order, so that both get the same batches.
        trainer._get_train_sampler = lambda *_: None
        losses[name] = [*support.train(trainer).losses, trainer.evaluate()["eval_loss"]]
        if peft:  # given later
            losses[name].append(trainer.evaluate(data.to_iterable_dataset())["eval_loss"])
    assert losses["streamed"] == pytest.approx(losses["indexed"], rel=1e-4)
    assert abs(losses["indexed"][-1] - losses["indexed"][0]) > 1e-3


# A dataset given to evaluate() after full fine-tuning has begun


def test_a_late_evaluation_needs_no_reference_for_what_is_stored(tiny_model_dir, tmp_path):
    data, late = helpers.pair_dataset(4), helpers.pair_dataset(5, seed=1)
    storing(tiny_model_dir, tmp_path, late)  # an earlier run
    trainer = storing(tiny_model_dir, tmp_path, data, beta=1.0, max_steps=2, learning_rate=0.03)
    support.train(trainer)
    assert trainer.ref_model is None

    policy, reference = trainer.model.eval(), fresh(tiny_model_dir)
    rows = trainer._prepare_dataset(late, trainer.processing_class, trainer.args, "late")
    expected = []
    for row in rows:
        ratios = [a - b for a, b in zip(row_logps(policy, row), row_logps(reference, row), strict=True)]
        expected.append(ratios[row["ranks"].index(0)] - ratios[row["ranks"].index(1)])
    mean = sum(expected) / len(expected)
    assert abs(mean) > 0.1
    assert trainer.evaluate(late)["eval_rewards/margins"] == pytest.approx(mean, abs=1e-4)
    both = trainer.evaluate({"a": late, "b": rows}, metric_key_prefix="test")
    loss = sum(math.log1p(math.exp(-margin)) for margin in expected) / len(expected)
    assert both["test_a_loss"] == both["test_b_loss"] == pytest.approx(loss, abs=1e-4)

    for missing in (
        helpers.pair_dataset(5, seed=2),
        {"a": late, "b": helpers.pair_dataset(1, seed=2)},
        late.to_iterable_dataset(),
    ):
        with pytest.raises(MissingReferenceError, match="keeps no reference in memory"):
            trainer.evaluate(missing)
    assert trainer.precompute_ref_logps


# Processes that end, and processes that share


def in_a_child(work: Callable[[], None]) -> int:
    """Start `work` in a copy of this process; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def status_of(pid: int) -> int:
    """Wait for a child; return its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_a_forward(number: int) -> Callable[[Any], None]:
    def arm(model: Any) -> None:
        left = [number]

        def count(*_: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                kill()

        model.get_input_embeddings().register_forward_pre_hook(count)

    return arm


def in_the_middle_of_writing(model: Any) -> None:
    write, left = Path.write_bytes, [1]

    def half(path: Path, contents: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            write(path, bytes(contents)[: len(contents) // 2])
            kill()
        return write(path, contents)

    Path.write_bytes = half  # type: ignore[method-assign]  # in the child only


def before_renaming(model: Any) -> None:
    rename, left = os.replace, [2]

    def ended(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            kill()
        rename(source, target)

    os.replace = ended  # in the child only


POINTS = {
    "before the first forward": (before_a_forward(0), 0),
    "between forwards": (before_a_forward(3), 3),
    "in the middle of writing": (in_the_middle_of_writing, 1),
    "before renaming": (before_renaming, 2),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_pass_that_was_killed_goes_on(point, tiny_model_dir, tmp_path, monkeypatch):
    arm, stored_by_then = POINTS[point]
    monkeypatch.setattr(fill, "_FLUSH_SECONDS", -1.0)  # after each batch
    data = helpers.ranked_dataset(16)
    model, forwards = watched(tiny_model_dir)
    whole = all_stored(storing(model, tmp_path / "whole", data))
    total = len(forwards)
    assert total > 4

    def run() -> None:
        arm(model)
        storing(model, tmp_path / "killed", data)

    assert status_of(in_a_child(run)) == -signal.SIGKILL
    assert len(list((tmp_path / "killed").rglob("*.arrow"))) == stored_by_then
    forwards.clear()
    resumed = storing(model, tmp_path / "killed", data)
    assert len(forwards) == total - stored_by_then
    assert torch.equal(all_stored(resumed), whole)


def test_two_processes_share_the_pass(tiny_model_dir, tmp_path):
    data = helpers.ranked_dataset(10)
    model, forwards = watched(tiny_model_dir)
    alone = storing(model, tmp_path / "alone", data, eval_dataset=data)
    total, expected = len(forwards), alone.evaluate()["eval_loss"]

    def work(number: int) -> None:
        forwards.clear()
        trainer = storing(model, tmp_path / "shared", data, eval_dataset=data)
        assert PartialState().num_processes == 2
        computed = len(forwards)
        result = {"computed": computed, "loss": trainer.evaluate()["eval_loss"], "values": all_stored(trainer).tolist()}
        (tmp_path / f"{number}.json").write_text(json.dumps(result))

    assert forks.in_two_ranks(work) == [0, 0]
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert sum(result["computed"] for result in results) == total
    assert min(result["computed"] for result in results) >= total // 2
    for result in results:
        assert result["values"] == all_stored(alone).tolist()
        assert result["loss"] == pytest.approx(expected, rel=1e-5)
    forwards.clear()
    storing(model, tmp_path / "shared", data)
    assert not forwards


def test_runs_that_fill_one_folder_at_the_same_time(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(fill, "_FLUSH_SECONDS", -1.0)
    data = helpers.ranked_dataset(8)
    model, forwards = watched(tiny_model_dir)
    children = [in_a_child(lambda: storing(model, tmp_path, data) and None) for _ in range(2)]
    storing(model, tmp_path, data)
    assert [status_of(pid) for pid in children] == [0, 0]
    forwards.clear()
    trainer = storing(model, tmp_path, data)
    assert not forwards
    assert support.distance(all_stored(trainer), by_hand(model, trainer)) < 1e-5
