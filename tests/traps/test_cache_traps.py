"""Traps of stored reference log-probs: ignored values, stale values, and batch shapes."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, fresh, put_back, row_logps, token_logps
from trl_dpo_ext.data.collator import PreferenceCollator
from trl_dpo_ext.modeling import forward
from trl_dpo_ext.modeling.layout import PromptGroup
from trl_dpo_ext.reference import run_reference
from trl_dpo_ext.reference.reference_cache import ReferenceCache, response_keys
from trl_dpo_ext.training import PreferenceTrainer, engine


def watched(folder: str) -> tuple[Any, list[int]]:
    """Return the model, and a list that grows with each forward pass."""
    model, forwards = fresh(folder), []
    model.get_input_embeddings().register_forward_hook(lambda *_: forwards.append(1))
    return model, forwards


# 2. Stored values that are ignored


def nobody_looks_them_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PreferenceCollator, "_stored", lambda *_: None)


def read_in_training_only(patch: pytest.MonkeyPatch) -> None:
    """Evaluation runs the reference instead."""
    compute_loss = PreferenceTrainer.compute_loss

    def online(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.model.training:
            inputs = {name: value for name, value in inputs.items() if name != "ref_token_logps"}
        return compute_loss(self, model, inputs, *args, **kwargs)

    patch.setattr(PreferenceTrainer, "compute_loss", online)


@bugs(nobody_looks_them_up, read_in_training_only)
def test_trap_02_stored_log_probs_are_read(bug, monkeypatch, tiny_model_dir, tmp_path):
    """A changed cache changes the losses of training and evaluation accordingly."""
    with put_back(bug, monkeypatch):
        data = helpers.pair_dataset(4)
        for number, peft in enumerate((None, support.lora())):
            settings: dict[str, Any] = {
                "eval_dataset": data,
                "peft_config": peft,
                "precompute_ref_log_probs": True,
                "max_steps": 1,
                "per_device_train_batch_size": 4,
                "beta": 1.0,
            }
            trainer = support.trainer(tiny_model_dir, tmp_path / f"{number}", data, **settings)
            assert support.train(trainer).losses == [pytest.approx(math.log(2), rel=1e-5)]

            # The reference now prefers every chosen response by 2 nats, so the margin of the untrained policy is -2.
            good = trainer._stored.cache
            bad = ReferenceCache(tmp_path / f"{number} bad", *good.folder.name.split("-"))
            bad.check_room(0, 0)
            for row in trainer.train_dataset:
                group = PromptGroup(row["prompt_ids"], row["completion_ids"])
                values = [v.copy() for v in good.lookup(group) or []]
                values[row["ranks"].index(0)][0] += 2
                bad.add(response_keys(group), values)
            trainer = support.trainer(
                tiny_model_dir, tmp_path / f"{number}", data, ref_cache_dir=str(tmp_path / f"{number} bad"), **settings
            )
            expected = math.log1p(math.exp(2.0))
            assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
            assert support.train(trainer).losses == [pytest.approx(expected, rel=1e-5)]


# 3. A stale cache


def sums_are_stored(patch: pytest.MonkeyPatch) -> None:
    """As in TRL: the stored log-probs include ld_alpha's weights, and are reused with another ld_alpha."""
    add = ReferenceCache.add

    def weighted(self: Any, keys: Any, values: Any) -> None:
        add(self, keys, [np.where(np.arange(len(v)) < 3, v, 0.4 * v).astype(np.float32) for v in values])

    patch.setattr(ReferenceCache, "add", weighted)


def the_path_is_the_fingerprint(patch: pytest.MonkeyPatch) -> None:
    """Weights changed in memory, or saved to the same folder, count as the old ones."""
    patch.setattr(run_reference, "fingerprint", lambda model, _: Path(model.config._name_or_path).name)


def the_run_is_part_of_the_key(patch: pytest.MonkeyPatch) -> None:
    """As in TRL: a new learning rate or output folder recomputes everything."""
    fingerprint, runs = run_reference.fingerprint, []
    patch.setattr(run_reference, "fingerprint", lambda *args: f"{fingerprint(*args)}{runs.append(1) or len(runs)}")


@pytest.mark.usefixtures("no_head_check")
@bugs(sums_are_stored, the_path_is_the_fingerprint, the_run_is_part_of_the_key)
def test_trap_03_stale_cache(bug, monkeypatch, tiny_model_dir, tmp_path):
    """The cache key is tokens, weights and precision, nothing else. Cached values equal plain forwards."""
    with put_back(bug, monkeypatch):

        def run(folder: str, model: Any, forwards: list[int], **settings: Any) -> tuple[int, Any]:
            forwards.clear()
            args = {
                "precompute_ref_log_probs": True,
                "ref_cache_dir": str(tmp_path / "cache"),
                "max_steps": 1,
                **settings,
            }
            trainer = support.trainer(model, tmp_path / folder, args.pop("data", helpers.pair_dataset(6)), **args)
            computed = len(forwards)
            batch = support.batch(trainer)
            rows = trainer.train_dataset
            for b, row in enumerate(rows):
                for k, ids in enumerate(row["completion_ids"]):
                    got = batch["ref_token_logps"][b, k, : len(ids)].tolist()
                    assert got == pytest.approx(token_logps(model, row["prompt_ids"], ids), abs=1e-4)
            return computed, trainer

        model, forwards = watched(tiny_model_dir)
        first, _ = run("a", model, forwards)
        assert first > 0
        for settings in (
            {"ld_alpha": 0.4},
            {"ld_alpha": 0.4, "max_length": None},
            {"learning_rate": 1e-4},
            {"loss_type": "ipo", "beta": 0.5},
            {"loss_type": "plackett_luce", "seed": 3, "per_device_train_batch_size": 1},
        ):
            computed, _ = run("b", model, forwards, **settings)
            assert computed == 0, settings

        # With another model, text or truncation, values are recomputed, and they differ.
        with torch.no_grad():
            model.lm_head.weight[:, 0] += 0.1
        assert run("a", model, forwards)[0] > 0
        assert run("a", model, forwards, max_length=12)[0] > 0
        rows = helpers.pair_rows(6)
        rows[2]["prompt"] = "a" + rows[2]["prompt"]
        assert run("a", model, forwards, data=type(helpers.pair_dataset(1)).from_list(rows))[0] == 1


# 10. The shape of a batch


def positions_count_from_the_left_edge(patch: pytest.MonkeyPatch) -> None:
    """Left padding without position ids: a token's log-prob depends on the rest of the batch."""
    inputs_of = forward.prepare_inputs

    def shifted(model: Any, config: Any, batch: Any) -> dict[str, Any]:
        inputs = inputs_of(model, config, batch)
        places = torch.arange(inputs["input_ids"].shape[1]) + len(inputs["input_ids"])
        return {**inputs, "position_ids": (places**1.5).unsqueeze(0)}

    for module in (forward, engine):
        patch.setattr(module, "prepare_inputs", shifted)


@bugs(positions_count_from_the_left_edge)
def test_trap_10_float32_margins_do_not_depend_on_the_batch(bug, monkeypatch, tiny_model_dir, tmp_path):
    """With different batch sizes for storing and training, margins still equal those of plain forwards."""
    with put_back(bug, monkeypatch):
        data = helpers.ranked_dataset(8)
        reference = helpers.tiny_model(helpers.tiny_tokenizer(), seed=1)
        margins = []
        for stored_in, evaluated_in, layout in ((1, 8, "padded"), (8, 1, "shared_packed"), (3, 2, "packed")):
            trainer = support.trainer(
                tiny_model_dir,
                tmp_path,
                data,
                eval_dataset=data,
                ref_model=reference,
                precompute_ref_log_probs=True,
                precompute_ref_batch_size=stored_in,
                per_device_eval_batch_size=evaluated_in,
                ref_cache_dir=str(tmp_path / f"cache of {stored_in}"),
                beta=1.0,
                **support.LAYOUTS[layout],
            )
            margins.append(trainer.evaluate()["eval_rewards/margins"])
        expected = []
        for row in trainer.eval_dataset:
            policy, ref = (row_logps(model, row) for model in (trainer.model, trainer.ref_model))
            ratios = [a - b for a, b in zip(policy, ref, strict=True)]
            expected.append(ratios[row["ranks"].index(0)] - ratios[row["ranks"].index(max(row["ranks"]))])
        assert margins == pytest.approx([sum(expected) / len(expected)] * 3, abs=1e-4)


def test_trap_10_bfloat16_warns_that_margins_do(tiny_model_dir, tmp_path, caplog):
    """In lower precision, stored values differ from those of the batch. A warning says by how much."""
    for settings, precision in (({"bf16": True}, "float32+autocast_bfloat16"), ({}, "float32")):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="trl_dpo_ext"):
            trainer = support.trainer(
                tiny_model_dir, tmp_path, helpers.ranked_dataset(8), precompute_ref_log_probs=True, **settings
            )
        assert trainer._stored.cache.folder.name.partition("-")[2] == precision
        assert "0 of 28 responses found" in caplog.text  # the other precision has its own values
        warnings = [
            r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "shape" in r.getMessage()
        ]
        assert len(warnings) == bool(settings)
    assert "nats" in str(warnings) or not warnings
