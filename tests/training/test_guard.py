"""A run that learns nothing or breaks stops before it does damage, and says what to check."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests import helpers
from tests.training import forks, support
from trl_dpo_ext import PreferencePairs, get_loss, list_losses, register_loss
from trl_dpo_ext.data.data_error import DataError
from trl_dpo_ext.testing import temporary_losses
from trl_dpo_ext.training import ConfigError, TrainingError, engine
from trl_dpo_ext.training.safety.likelihood_displacement import falls_steadily, find_displacement

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


def run(model: Any, folder: Path, data: Any = None, **changes: Any) -> Any:
    data = helpers.ranked_dataset(8) if data is None else data
    changes.setdefault("peft_config", support.lora())
    return support.trainer(model, folder, data, **changes)


class AtStep(TrainerCallback):
    """Does something to the trainer at the beginning of a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action(kwargs["model"])


def trainable(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def copies(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainable(model)]


# NaN and infinity


def marked(row: int) -> helpers.Dataset:
    """Return eight rows, one with a token that the others don't have."""
    rows = helpers.ranked_rows(8)
    rows[row]["completions"][1] = f" {helpers.START}"
    return helpers.Dataset.from_list(rows)


def spoil(one: Any, value: float) -> None:
    """Set that token's (frozen) embedding to NaN or infinity."""
    token = one.processing_class.convert_tokens_to_ids(helpers.START)
    with torch.no_grad():
        one.model.get_input_embeddings().weight[token] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_row(value, tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path, marked(6), gradient_accumulation_steps=2, **SAVING)
    spoil(one, value)
    before: list[Any] = []

    class Keep(TrainerCallback):
        def on_step_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            before[:] = copies(model)

    one.add_callback(Keep())
    with pytest.raises(TrainingError) as stopped:
        one.train()
    assert stopped.value.rows == [6]
    message = str(stopped.value)
    assert message.startswith("Step 2: the loss is NaN or infinite. Rows of the training dataset: 6. ")
    assert f"The last complete checkpoint is {tmp_path}/checkpoint-1." in message
    assert not (tmp_path / "checkpoint-2").exists()
    assert all(torch.equal(p, q) for p, q in zip(trainable(one.model), before, strict=True))


def break_gradients(model: Any) -> None:
    trainable(model)[0].register_hook(lambda gradient: gradient * math.nan)


def test_gradients_that_are_not_finite_name_the_rows_of_the_step(tiny_model_dir, tmp_path):
    def keep_and_break(model: Any) -> None:
        weights[:] = copies(model)
        break_gradients(model)

    weights: list[torch.Tensor] = []
    one = run(
        tiny_model_dir,
        tmp_path,
        helpers.ranked_dataset(12),
        gradient_accumulation_steps=2,
        callbacks=[AtStep(3, keep_and_break)],
        **SAVING,
    )
    seen = []
    get_batches = one.get_batch_samples

    def watched(*args: Any) -> Any:
        batches, count = get_batches(*args)
        seen.append(sorted(row for batch in batches for row in batch["rows"].tolist()))
        return batches, count

    one.get_batch_samples = watched
    with pytest.raises(
        TrainingError, match="Step 3: the loss is finite, but the norm of its gradients is nan"
    ) as stopped:
        one.train()
    assert stopped.value.rows == seen[-1]
    assert len(seen[-1]) == 4
    assert sorted(row for rows in seen for row in rows) == list(range(12))
    assert f"{tmp_path}/checkpoint-2." in str(stopped.value)
    assert not (tmp_path / "checkpoint-3").exists()
    assert all(torch.equal(p, q) for p, q in zip(trainable(one.model), weights, strict=True))


def test_dropped_rows_leave_the_numbers_of_the_others(tiny_model_dir, tmp_path):
    rows = helpers.ranked_rows(5)
    rows[1]["prompt"] = ""
    one = run(tiny_model_dir, tmp_path, helpers.Dataset.from_list(rows), invalid_rows="drop")
    assert one.train_dataset["row"][:] == [0, 2, 3, 4]
    assert support.batch(one)["rows"].tolist() == [0, 2, 3, 4]


def test_an_evaluation_that_is_not_finite_does_not_stop_the_run(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path, eval_dataset=marked(0), eval_strategy="steps", eval_steps=1, max_steps=2)
    spoil(one, math.nan)
    one.train()
    assert math.isnan(one.state.log_history[1]["eval_loss"])


def test_two_processes_stop_together_with_the_rows_of_both(tiny_model_dir, tmp_path):
    def work(rank: int) -> None:
        one = run(tiny_model_dir, tmp_path / "loss", marked(6))
        spoil(one, math.nan)
        with pytest.raises(
            TrainingError, match=r"Step 2: the loss is NaN or infinite\. Rows of the training dataset: 6\."
        ):
            one.train()

        two = run(
            tiny_model_dir, tmp_path / "gradients", callbacks=[AtStep(2, break_gradients if rank else lambda m: m)]
        )
        with pytest.raises(TrainingError, match=r"Step 2: .* norm of its gradients is nan") as stopped:
            two.train()
        assert len(stopped.value.rows) == 4  # two of each process

    assert forks.in_two_ranks(work) == [0, 0]


@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_an_overflow_of_fp16_is_left_to_the_loss_scaling_until_its_scale_is_one(scale, tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path)
    one.accelerator.scaler = SimpleNamespace(get_scale=lambda: scale)
    norm = torch.tensor(math.inf)
    if scale > 1:
        assert one.guard.check_gradients(one.model, norm) is norm
    else:
        with pytest.raises(TrainingError, match="norm of its gradients is inf"):
            one.guard.check_gradients(one.model, norm)


# The first step


def test_nothing_is_trainable(tiny_model_dir, tmp_path):
    model = helpers.tiny_model(helpers.tiny_tokenizer()).requires_grad_(False)
    one = run(model, tmp_path, peft_config=None, processing_class=helpers.tiny_tokenizer())
    with pytest.raises(TrainingError, match="No weight is trainable"):
        one.train()


def test_the_loss_depends_on_no_trainable_weight(tiny_model_dir, tmp_path, monkeypatch):
    one = run(tiny_model_dir, tmp_path)
    forward = engine.token_outputs
    monkeypatch.setattr(engine, "token_outputs", lambda *args: _detached(forward(*args)))
    with pytest.raises(TrainingError, match=r"Step 1: the loss depends on no trainable weight.*gradient checkpointing"):
        one.train()


def _detached(outputs: Any) -> Any:
    outputs.model_outputs.log_probs = outputs.model_outputs.log_probs.detach()
    return outputs


def test_gradients_that_are_zero(tiny_model_dir, tmp_path):
    # Weight decay moves the weights all the same.
    one = run(tiny_model_dir, tmp_path, weight_decay=0.5, **SAVING)
    for p in trainable(one.model):
        p.register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=r"Step 1: none of the 8 .* all their gradients are 0, but the loss isn't"):
        one.train()
    assert not (tmp_path / "checkpoint-1").exists()


def test_gradients_that_are_lost(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path)
    for p in trainable(one.model):
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with pytest.raises(TrainingError, match=r"Step 1: .* learning rate 0\.01; none of them received a gradient"):
        one.train()


def test_an_optimizer_with_other_weights(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path)
    one.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TrainingError, match=r"Step 1: .* they had gradients \(norm .*other weights than the model's"):
        one.train()


def test_an_update_that_breaks_the_weights(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path, optim="sgd", learning_rate=1e38, **SAVING)
    for p in trainable(one.model):
        p.register_hook(lambda gradient: 1e5 * gradient)
    with pytest.raises(
        TrainingError, match=r"Step 1: the gradients were finite .* NaN or infinity in 4 of 8"
    ) as stopped:
        one.train()
    assert len(stopped.value.rows) == 2
    assert not (tmp_path / "checkpoint-1").exists()


@pytest.mark.parametrize("peft_config", [None, support.lora()], ids=["weights", "lora"])
def test_a_learning_rate_of_zero_is_waited_out(peft_config, tiny_model_dir, tmp_path):
    one = run(
        tiny_model_dir, tmp_path, peft_config=peft_config, lr_scheduler_type="constant_with_warmup", warmup_steps=2
    )
    rates = []

    class Rates(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            rates.append((one.guard._rate, one.guard._initial_checksums is None))

    one.add_callback(Rates())
    one.train()
    assert rates == [(0.0, False), (0.005, True), (0.01, True)]


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_steps_that_loss_scaling_skips_are_waited_out(optim, tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path, max_steps=8, optim=optim)
    # As on a GPU with fp16.
    one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    one.accelerator.native_amp, one.accelerator.state._mixed_precision = True, "fp16"
    steps = []

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append((math.isfinite(one.guard._norm), one.guard._initial_checksums is None))

    one.add_callback(Steps())
    one.train()
    finite, found = zip(*steps, strict=True)
    assert not finite[0]
    assert True in finite
    assert list(found) == [True in finite[: step + 1] for step in range(8)]


def tied_rows(count: int, tied: int) -> helpers.Dataset:
    """Return pairs of which the first `tied` are ties."""
    rows = [
        {"prompt": f"Say {n}.", "completions": [f" yes {n}", f" no, not {n}"], "ranks": [0, int(n >= tied)]}
        for n in range(count)
    ]
    return helpers.Dataset.from_list(rows)


def one_by_one(folder: Path, model: Any, tied: int, **changes: Any) -> Any:
    """Return a Davidson run over four pairs in their order, one a step: ties have no gradient at the reference."""
    settings = {"loss_type": "dpo_davidson", "per_device_train_batch_size": 1, "max_steps": 4, **changes}
    return run(model, folder, tied_rows(4, tied), train_sampling_strategy="sequential", **settings)


def test_ties_that_have_no_gradient_yet_are_waited_out(tiny_model_dir, tmp_path):
    one = one_by_one(tmp_path, tiny_model_dir, tied=2)
    before = copies(one.model)
    seen = []

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(one.guard._initial_checksums is None)

    one.add_callback(Steps())
    one.train()
    assert seen == [False, False, True, True]
    assert not all(torch.equal(p, q) for p, q in zip(trainable(one.model), before, strict=True))


def test_only_ties_without_a_gradient_stop_at_the_end(tiny_model_dir, tmp_path):
    one = one_by_one(tmp_path, tiny_model_dir, tied=4)
    for p in trainable(one.model):
        p.register_hook(torch.zeros_like)  # no rounding either
    with pytest.raises(TrainingError, match=r"Step 4: the run ends, and none of .* all responses were tied"):
        one.train()


def test_pairs_that_compare_something_and_have_no_gradient_stop_at_once(tiny_model_dir, tmp_path):
    one = one_by_one(tmp_path, tiny_model_dir, tied=2)
    for p in trainable(one.model):
        p.register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=r"Step 3: none of the 8 .* all their gradients are 0"):
        one.train()


def test_a_run_whose_learning_rate_is_always_zero_stops_at_the_end(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path, max_steps=1, lr_scheduler_type="constant_with_warmup", warmup_steps=3)
    with pytest.raises(TrainingError, match=r"Step 1: the run ends, .* the learning rate was 0 in the last step"):
        one.train()


def test_a_loss_that_is_always_zero_stops_at_the_end(tiny_model_dir, tmp_path):
    # At the start all margins are 0, so this hinge is met by a thousand nats.
    with temporary_losses():

        @register_loss("met_hinge")
        def met_hinge(pairs: PreferencePairs) -> torch.Tensor:
            return torch.relu(-1000 - pairs.margins)

        one = run(tiny_model_dir, tmp_path, loss_type="met_hinge")
        with pytest.raises(TrainingError, match=r"the run ends, .* the loss was 0 in the last step"):
            one.train()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 is out of range"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [0.0, 0.0]}, "loss_weights=.* trains nothing"),
        ({"loss_weights": [0.0]}, "loss_weights=.* trains nothing"),
    ],
)
def test_settings_that_train_nothing_are_refused(setting, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        support.config(tmp_path, **setting)


def test_a_weight_of_zero_beside_others_is_allowed(tmp_path):
    support.config(tmp_path, loss_type=["dpo", "sft"], loss_weights=[1.0, 0.0])


def test_no_clipping_keeps_the_checks_of_gradients(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path, max_grad_norm=0.0, callbacks=[AtStep(2, break_gradients)])
    with pytest.raises(TrainingError, match=r"Step 2: .* norm of its gradients is nan"):
        one.train()


def test_responses_that_are_the_same_after_truncation_are_not_trained(tiny_model_dir, tmp_path):
    same = {"prompt": "Say it.", "chosen": " a b c d e f g h", "rejected": " a b c d e f g x"}
    other = {"prompt": "Say it.", "chosen": " a b", "rejected": " x y"}
    tokenizer = helpers.tiny_tokenizer()
    length = len(tokenizer("Say it. a b c")["input_ids"])
    with pytest.raises(DataError, match=r"same tokens within it. Raise max_length"):
        run(tiny_model_dir, tmp_path, helpers.Dataset.from_list([same] * 4), max_length=length)
    one = run(tiny_model_dir, tmp_path, helpers.Dataset.from_list([same, other]), max_length=length)
    assert one.train_dataset["row"][:] == [1]


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_weights_too_coarse_for_the_learning_rate(warmup_steps, tmp_path):
    tokenizer = helpers.tiny_tokenizer()
    settings = {"peft_config": None, "processing_class": tokenizer, "learning_rate": 1e-30, "optim": "sgd"}
    model = helpers.tiny_model(tokenizer).bfloat16()
    one = run(model, tmp_path, warmup_steps=warmup_steps, lr_scheduler_type="linear", **settings)
    if warmup_steps:  # the rate still rises, so a weight may still change
        with pytest.raises(TrainingError, match=r"Step 3: the run ends, .* too coarse for the learning rate"):
            one.train()
    else:
        with pytest.raises(TrainingError, match="too coarse for a small learning rate"):
            one.train()


def test_one_element_of_one_weight_is_enough(tiny_model_dir, tmp_path):
    one = run(tiny_model_dir, tmp_path)
    for number, p in enumerate(trainable(one.model)):
        p.register_hook(
            lambda g, n=number: torch.zeros_like(g).flatten().index_fill(0, torch.tensor([3]), float(n == 1)).view_as(g)
        )
    one.train()
    assert one.guard._initial_checksums is None


# Likelihood displacement


def noise(rng: random.Random, count: int, level: float = -80.0, sigma: float = 20.0) -> list[float]:
    return [rng.gauss(level, sigma) for _ in range(count)]


def history(chosen: list[float], rejected: list[float], prefix: str = "logps") -> list[dict[str, float]]:
    pairs = zip(chosen, rejected, strict=True)
    return [{"loss": 0.5, "logps/chosen": c, f"{prefix}/chosen": c, f"{prefix}/rejected": r} for c, r in pairs]


def test_a_series_falls_where_every_third_is_below_the_last_by_more_than_the_noise():
    assert falls_steadily([10, 11, 10, 7, 8, 7, 3, 4, 3])
    assert not falls_steadily([10, 11, 10, 7, 8, 7, 7, 8, 7])  # it has stopped
    assert not falls_steadily([10, 11, 10, 3, 4, 3, 10, 11, 10])
    assert not falls_steadily([5.0] * 9)
    assert falls_steadily([-2.0 * n for n in range(15)])
    assert not falls_steadily([-0.06 * n for n in range(15)])  # under a nat in all
    # By hand: means 6, 0, -6; variance 9 in each third of 3, so a standard error of sqrt(6), times 3: 7.35 > 6.
    assert not falls_steadily([m + d for m in (6.0, 0.0, -6.0) for d in (-3, 0, 3)])
    assert falls_steadily([m + d for m in (7.4, 0.0, -7.4) for d in (-3, 0, 3)])


def looks(logs: list[dict[str, float]], scale: float | None = None) -> list[tuple[int, Any]]:
    """Return what is found after each log."""
    return [(n, found) for n in range(1, len(logs) + 1) if (found := find_displacement(logs[:n], scale)) is not None]


def test_noise_is_no_alarm():
    rng = random.Random(0)
    for _ in range(60):
        assert not looks(history(noise(rng, 240), noise(rng, 240)))


def test_noise_that_both_responses_share_is_no_alarm():
    rng = random.Random(1)
    for _ in range(60):
        prompts = noise(rng, 240)
        assert not looks(history(prompts, [value - 10 for value in prompts]))


def test_one_that_falls_alone_is_no_alarm():
    rng = random.Random(2)
    falling = [value - 3 * n for n, value in enumerate(noise(rng, 120))]
    assert not looks(history(noise(rng, 120), falling))
    assert not looks(history(falling, noise(rng, 120)))


def test_both_falling_is_found_quickly_if_steep_and_later_if_slow():
    rng = random.Random(3)

    def fall(slope: float) -> list[float]:
        return [value - slope * n for n, value in enumerate(noise(rng, 480))]

    (steep, found), *_ = looks(history(fall(20), fall(25)))
    assert steep <= 30
    assert found[1] == pytest.approx(20 * steep * 2 / 3, rel=0.2)
    assert found[2] == pytest.approx(25 * steep * 2 / 3, rel=0.2)
    (slow, _), *_ = looks(history(fall(0.5), fall(0.5)))
    assert steep < slow <= 480


def test_log_ratios_are_read_where_there_are_any():
    ratios = history([-0.1 * n for n in range(15)], [-0.2 * n for n in range(15)], prefix="rewards")
    for entry in ratios:
        entry["logps/chosen"] = 0.0  # flat
    # 10 nats for chosen and 20 for rejected, between the means of the outer thirds: rewards are beta times that.
    assert find_displacement(ratios, 0.1) == (15, pytest.approx(10), pytest.approx(20))
    assert find_displacement(ratios, 1.0) is None or find_displacement(ratios, 1.0)[1] == pytest.approx(1.0)
    assert find_displacement([{"eval_loss": 1.0}, *ratios], 0.1) is not None  # evaluations don't count


def test_the_warning_comes_once_and_names_the_losses_that_counter_it(tiny_model_dir, tmp_path, caplog):
    one = run(tiny_model_dir, tmp_path, loss_type="simpo")
    logs = history([-10.0 * n for n in range(30)], [-10.0 * n for n in range(30)])
    for n in range(1, 31):
        state = SimpleNamespace(log_history=logs[:n], is_world_process_zero=True)
        one.guard.on_log(one.args, state, None, logs=logs[n - 1])
    (message,) = [m for m in caplog.messages if "2410.08847" in m]
    assert message.startswith(
        "Likelihood displacement (arXiv 2410.08847): over the last 15 logs, the log-probs of chosen and rejected"
    )
    countering = [spec.name for spec in list_losses() if spec.counters_displacement]
    assert ", ".join(countering) in message
    assert {"dpop", "minor_dpo", "bounded_dpo"} <= set(countering)
    assert not get_loss("dpo").counters_displacement
