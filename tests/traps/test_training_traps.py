"""Traps on the way from log-probs to weights: mixes, rows, accumulation, precision, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from trl.trainer import dpo_trainer

from tests import helpers
from tests.losses import transcriptions
from tests.training import support
from tests.traps.support import bugs, fresh, put_back, token_logps
from trl_dpo_ext.modeling import forward, row_plan
from trl_dpo_ext.modeling import layout as layouts
from trl_dpo_ext.training import PreferenceTrainer, engine, objective
from trl_dpo_ext.training.batch import ranked_responses

# 7. Mixed losses


def first_loss_only(patch: pytest.MonkeyPatch) -> None:
    call = objective.Objective.__call__

    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(objective.Objective(self.terms[:1], self.pairing, self.modifiers), *args, **kwargs)

    patch.setattr(objective.Objective, "__call__", first)


def lengths_leak(patch: pytest.MonkeyPatch) -> None:
    """If one loss uses per-token means, all losses get them."""
    call = objective.Objective.__call__

    def normalised(self: Any, responses: Any, **kwargs: Any) -> Any:
        if any(term.spec.length_normalized for term in self.terms):
            responses = responses.replace(logps=responses.logps / responses.lengths.clamp(min=1))
        return call(self, responses, **kwargs)

    patch.setattr(objective.Objective, "__call__", normalised)


@bugs(first_loss_only, lengths_leak)
def test_trap_07_mixed_losses_do_not_leak(bug, monkeypatch, tiny_model_dir, tmp_path):
    """Every mix is the weighted sum of its losses, each transcribed from its paper in float64."""
    with put_back(bug, monkeypatch):
        weights = {"dpo": 1.0, "simpo": 0.5, "ipo": 0.25}
        model, ref_model = fresh(tiny_model_dir), helpers.tiny_model(helpers.tiny_tokenizer(), seed=3)
        trainer = support.trainer(
            model,
            tmp_path,
            helpers.pair_dataset(4),
            ref_model=ref_model,
            loss_type=list(weights),
            loss_weights=list(weights.values()),
            max_steps=1,
            per_device_train_batch_size=4,
        )
        expected = 0.0
        for row in trainer.train_dataset:
            sides = {}
            for side, rank in (("w", 0), ("l", 1)):
                ids = row["completion_ids"][row["ranks"].index(rank)]
                policy, ref = (sum(token_logps(m, row["prompt_ids"], ids)) for m in (model, ref_model))
                sides[side] = (policy, ref, len(ids))
            (pi_w, ref_w, n_w), (pi_l, ref_l, n_l) = sides["w"], sides["l"]
            margin = (pi_w - ref_w) - (pi_l - ref_l)
            values = {
                "dpo": -math.log(transcriptions.sigmoid(0.1 * margin)),
                "simpo": -math.log(transcriptions.sigmoid(2.0 * (pi_w / n_w - pi_l / n_l) - 2.0 * 0.5)),
                # As in TRL: log-ratios per token
                "ipo": ((pi_w - ref_w) / n_w - (pi_l - ref_l) / n_l - 1 / (2 * 0.1)) ** 2,
            }
            expected += sum(weights[name] * value for name, value in values.items()) / 4
        assert support.train(trainer).losses == [pytest.approx(expected, rel=1e-5)]


# 8. Packed rows


def swap_the_slots(patch: pytest.MonkeyPatch) -> None:
    """Log-probs of a packed row go to the neighboring response."""
    row = layouts._build_row

    def swapped(sequences: Any, longest: int) -> Any:
        result = row(sequences, longest)
        slots = sorted({i // longest for i in result["index"] if i >= 0})
        after = dict(zip(slots, slots[1:] + slots[:1], strict=True))
        result["index"] = [i if i < 0 else after[i // longest] * longest + i % longest for i in result["index"]]
        return result

    patch.setattr(layouts, "_build_row", swapped)


def no_separation(patch: pytest.MonkeyPatch) -> None:
    """Responses of a shared row attend to each other, and the self-check is off."""
    row = layouts._build_row

    def one_segment(sequences: Any, longest: int) -> Any:
        result = row(sequences, longest)
        return {**result, "segment_ids": [1] * len(result["segment_ids"])}

    class Passed:
        failure, error = None, 0.0

    patch.setattr(layouts, "_build_row", one_segment)
    patch.setattr(row_plan, "check_rows", lambda *args, **kwargs: Passed)


@bugs(swap_the_slots, no_separation)
@pytest.mark.parametrize("layout", ["packed", "shared", "shared_packed"])
def test_trap_08_packed_rows(layout, bug, monkeypatch, tiny_model_dir, tmp_path):
    """In packed and shared rows, every token's log-prob equals that of its sequence alone, for ragged K."""
    with put_back(bug, monkeypatch):
        trainer = support.trainer(
            tiny_model_dir, tmp_path, helpers.ranked_dataset(6, ties=True), **support.LAYOUTS[layout]
        )
        batch = support.batch(trainer)
        assert len(batch["input_ids"]) < int(batch["mask"].sum())
        with torch.no_grad():
            got = support.policy_outputs(trainer, batch).logps
        model = fresh(tiny_model_dir)
        for number, row in enumerate(trainer.train_dataset):
            for k, ids in enumerate(row["completion_ids"]):
                expected = token_logps(model, row["prompt_ids"], ids)
                assert got[number, k, : len(ids)].tolist() == pytest.approx(expected, abs=2e-5)
                assert not got[number, k, len(ids) :].any()


# 9. Gradient accumulation


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    call = PreferenceTrainer.get_batch_samples
    patch.setattr(PreferenceTrainer, "get_batch_samples", lambda self, *args: (call(self, *args)[0], None))


@bugs(mean_of_means)
def test_trap_09_gradient_accumulation(bug, monkeypatch, tiny_model_dir, tmp_path):
    """The same 7 prompts with ragged K give the same gradient as 7x1, 3+3+1 and 1x7."""
    with put_back(bug, monkeypatch):
        runs = []
        for micro_batch, parts in ((7, 1), (3, 3), (1, 7)):
            trainer = support.trainer(
                tiny_model_dir,
                tmp_path,
                helpers.ranked_dataset(7),
                loss_type=["plackett_luce", "dpo"],
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=parts,
                max_steps=1,
            )
            runs.append(support.train(trainer))
        for run in runs[1:]:
            assert run.losses == pytest.approx(runs[0].losses, rel=1e-5)
            support.assert_same_tensors(run.gradients[0], runs[0].gradients[0])


# 10. The batch's shape


def low_precision_head(patch: pytest.MonkeyPatch) -> None:
    """Log-probs are summed in bfloat16, so a row's rounding depends on the rest of the batch."""
    call = forward.gather_token_logps
    patch.setattr(forward, "gather_token_logps", lambda *args: call(*args).bfloat16().float())


@bugs(low_precision_head)
def test_trap_10_margins_do_not_depend_on_the_batch(bug, monkeypatch, tiny_model_dir, tmp_path):
    """Float32 log-probs of a prompt alone and among others, in any layout, differ by rounding only."""
    with put_back(bug, monkeypatch):
        model = fresh(tiny_model_dir)
        for settings in support.LAYOUTS.values():
            trainer = support.trainer(tiny_model_dir, tmp_path, helpers.ranked_dataset(6), **settings)
            for rows in (slice(2, 3), slice(6)):
                batch = support.batch(trainer, rows)
                with torch.no_grad():
                    got = support.policy_outputs(trainer, batch).logps
                row = trainer.train_dataset[2]
                for k, ids in enumerate(row["completion_ids"]):
                    expected = sum(token_logps(model, row["prompt_ids"], ids))
                    assert got[2 if rows.start is None else 0, k].sum().item() == pytest.approx(expected, abs=3e-5)


# 11. Lost gradients, and noise between policy and reference


def no_input_gradients(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PreTrainedModel, "enable_input_require_grads", lambda self: None)


@bugs(no_input_gradients)
def test_trap_11_gradients_under_checkpointing_with_an_adapter(bug, monkeypatch, tiny_model_dir, tmp_path):
    """With re-entrant checkpointing and a frozen base, every adapter gets the same gradient as without."""
    with put_back(bug, monkeypatch):
        runs = []
        for settings in (
            {},
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        ):
            trainer = support.trainer(
                tiny_model_dir,
                tmp_path,
                helpers.ranked_dataset(4),
                peft_config=support.lora(init_lora_weights=False),
                max_steps=1,
                **settings,
            )
            for name, weight in trainer.model.named_parameters():
                if "lora" in name:
                    torch.manual_seed(len(name))
                    nn.init.normal_(weight, std=0.1)
            runs.append(support.train(trainer))
        plain, checkpointed = (run.gradients[0] for run in runs)
        assert len(plain) == 8
        support.assert_same_tensors(checkpointed, plain)


def keep_dropout_modules(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dpo_trainer, "disable_dropout_in_model", lambda model: None)


def keep_functional_dropout(patch: pytest.MonkeyPatch) -> None:
    """TRL alone sets dropout modules to 0, but not the float that Llama's attention stores."""
    patch.setattr(engine, "disable_functional_dropout", lambda model: None)


@bugs(keep_dropout_modules, keep_functional_dropout)
def test_trap_11_no_dropout_in_the_policy(bug, monkeypatch, tmp_path):
    """Policy and reference start equal, so the first loss is ln 2, whatever dropout the config sets."""
    with put_back(bug, monkeypatch):
        llama = helpers.save_tiny_model(tmp_path / "llama", attention_dropout=0.3)
        gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=320, resid_pdrop=0.3))
        for model in (llama, gpt2):
            trainer = support.trainer(
                model,
                tmp_path,
                helpers.pair_dataset(4),
                processing_class=helpers.tiny_tokenizer(),
                loss_type="dpo",
                beta=10.0,
                max_steps=1,
            )
            assert support.train(trainer).losses == [pytest.approx(math.log(2), rel=1e-4)]


def test_trap_11_an_adapter_on_the_head_is_refused(tiny_model_dir, tmp_path):
    """TRL's fused head would ignore the adapter. TRL rejects it since 1.16, and so do we."""
    with pytest.raises(ValueError, match="lm_head"):
        support.trainer(
            tiny_model_dir,
            tmp_path,
            helpers.pair_dataset(4),
            peft_config=support.lora(target_modules=["q_proj", "lm_head"]),
        )


def half_precision_sums(patch: pytest.MonkeyPatch) -> None:
    call = forward.gather_token_logps
    patch.setattr(forward, "gather_token_logps", lambda *args: call(*args).half())


@bugs(half_precision_sums)
def test_trap_11_long_responses_do_not_overflow_in_half_precision(bug, monkeypatch, tmp_path):
    """The weights are float16; log-probs are summed in float32, where -70,000 is a number."""
    with put_back(bug, monkeypatch):
        folder = helpers.save_tiny_model(tmp_path / "model", max_position_embeddings=4096)
        model = fresh(folder).half()
        trainer = support.trainer(
            model, tmp_path, helpers.pair_dataset(2), max_length=None, loss_type="reference_free_dpo"
        )
        rows = [{"prompt_ids": [5, 6], "completion_ids": [[7] * 2000, [8] * 1999], "ranks": [0, 1]}]
        batch = trainer.data_collator(rows)
        outputs = support.policy_outputs(trainer, batch)
        outputs.model_outputs.log_probs = outputs.model_outputs.log_probs * 0 - 35.0
        seen = ranked_responses(outputs, None, batch, needs=())
        assert seen.logps.tolist() == [[-70000.0, -69965.0]]
