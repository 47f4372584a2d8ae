"""What `trl.DPOTrainer` takes and `PreferenceTrainer` doesn't, and the reverse; docs/moving_from_trl.md lists both."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, Sequence, Value
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
)
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests import helpers
from tests.training import support
from trl_dpo_ext.data import DataError
from trl_dpo_ext.losses import HyperparameterError
from trl_dpo_ext.training import ConfigError, PreferenceConfig, PreferenceTrainer, TrainingError

PAIR = helpers.pair_rows(1)[0]


def trl(model: Any, folder: Any, data: Any, **changes: Any) -> DPOTrainer:
    """TRL's trainer; keywords that its constructor knows go there, the others to its config."""
    own = {"ref_model", "eval_dataset", "peft_config", "compute_metrics", "data_collator"}
    given = {name: changes.pop(name) for name in own & set(changes)}
    args = DPOConfig(**helpers.training_args(folder, **{"max_grad_norm": 1e9, **changes}))
    return DPOTrainer(model=model, args=args, train_dataset=data, **given)


# Settings that TRL takes.

REFUSED: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "truncation_mode": ({"truncation_mode": "keep_end"}, ConfigError),
    "pad_to_multiple_of": ({"pad_to_multiple_of": 8}, ConfigError),
    "pad_token": ({"pad_token": "<s>"}, ConfigError),
    "discopop_tau": ({"discopop_tau": 0.1}, HyperparameterError),
    "label_smoothing": ({"loss_type": "hinge", "label_smoothing": 0.1}, HyperparameterError),
    "beta": ({"beta": 0.0}, HyperparameterError),
    "precompute_ref_log_probs": ({"loss_type": "sft", "precompute_ref_log_probs": True}, ConfigError),
    "sync_ref_model": ({"loss_type": "sft", "sync_ref_model": True}, ConfigError),
    "ld_alpha": ({"loss_type": "sft", "ld_alpha": 0.5}, ConfigError),
}


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_settings(name, tiny_model_dir, tmp_path):
    settings, error = REFUSED[name]
    support.train(trl(tiny_model_dir, tmp_path, helpers.pair_dataset(2), max_steps=1, **settings))
    with pytest.raises(error, match=name):
        PreferenceConfig(**helpers.training_args(tmp_path, **settings))


def test_label_smoothing_at_which_robust_divides_by_zero(tiny_model_dir, tmp_path):
    settings = {"loss_type": "robust", "label_smoothing": 0.5, "max_steps": 1}
    theirs = support.train(trl(tiny_model_dir, tmp_path, helpers.pair_dataset(2), **settings))
    assert all(not torch.isfinite(gradient).all() for gradient in theirs.gradients[0].values())
    with pytest.raises(HyperparameterError, match=r"label_smoothing=0\.5"):
        PreferenceConfig(**helpers.training_args(tmp_path, **settings))


def test_defaults(tmp_path):
    """A change of this table is a change for everyone who moves from TRL."""
    settings = {"output_dir": str(tmp_path), "bf16": False}
    theirs, ours = DPOConfig(**settings), PreferenceConfig(**settings)
    changed = {
        field.name: (getattr(theirs, field.name), getattr(ours, field.name))
        for field in fields(DPOConfig)
        if field.name != "accelerator_config" and getattr(theirs, field.name) != getattr(ours, field.name)
    }
    assert changed == {
        "beta": (0.1, None),  # each loss's own; for TRL's losses 0.1
        "label_smoothing": (0.0, None),
        "discopop_tau": (0.05, None),
        "enable_jit_checkpoint": (False, True),
        "dataloader_pin_memory": (True, False),  # on a machine without an accelerator
    }


# Arguments that TRL takes.


def test_compute_metrics_and_data_collator(tiny_model_dir, tmp_path):
    data = helpers.pair_dataset(2)
    given: dict[str, Any] = {
        "compute_metrics": lambda prediction: {"answer": 42.0},
        "data_collator": DataCollatorForPreference(pad_token_id=0),
    }
    theirs = trl(tiny_model_dir, tmp_path, data, eval_dataset=data, max_steps=1, **given)
    theirs.train()
    assert theirs.evaluate()["eval_answer"] == 42
    for name, value in given.items():
        with pytest.raises(ConfigError, match=name):
            PreferenceTrainer(tiny_model_dir, args=support.config(tmp_path), train_dataset=data, **{name: value})


def test_predictions_hold_metrics_only(tiny_model_dir, tmp_path):
    data = helpers.pair_dataset(2)
    theirs = trl(tiny_model_dir, tmp_path, data, max_steps=1)
    theirs.train()
    assert theirs.predict(theirs.train_dataset).predictions is not None
    ours = support.trainer(tiny_model_dir, tmp_path, data, max_steps=1)
    ours.train()
    output = ours.predict(ours.train_dataset)
    assert output.predictions is None
    assert output.metrics["test_loss"] == pytest.approx(
        theirs.predict(theirs.train_dataset).metrics["test_loss"], rel=1e-5
    )


def test_a_reference_that_no_loss_reads(tiny_model_dir, tmp_path):
    data = helpers.pair_dataset(2)
    second = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    # TRL has a reference for every loss.
    assert trl(tiny_model_dir, tmp_path, data, loss_type="sft").ref_model is not None
    assert trl(tiny_model_dir, tmp_path, data, loss_type="sft", ref_model=second).ref_model is not None
    assert support.trainer(tiny_model_dir, tmp_path, data, loss_type="sft").ref_model is None
    with pytest.raises(ConfigError, match="ref_model"):
        support.trainer(tiny_model_dir, tmp_path, data, loss_type="sft", ref_model=second)


def test_the_missing_dataset_in_trls_words(tiny_model_dir, tmp_path):
    for make in (
        lambda: trl(tiny_model_dir, tmp_path, None),
        lambda: support.trainer(tiny_model_dir, tmp_path, None),
    ):
        with pytest.raises(ValueError, match="`train_dataset` is required"):
            make()


def test_a_plain_dpo_config(tiny_model_dir, tmp_path):
    args: Any = DPOConfig(**helpers.training_args(tmp_path))
    with pytest.raises(TypeError, match="PreferenceConfig"):
        PreferenceTrainer(tiny_model_dir, args=args, train_dataset=helpers.pair_dataset(2))


@pytest.mark.parametrize("name", ["_compute_loss", "compute_ref_log_probs"])
def test_overrides_that_would_never_be_called(name):
    def override(self: Any, *args: Any) -> None:
        raise NotImplementedError

    type("Theirs", (DPOTrainer,), {name: override})
    with pytest.raises(TypeError, match=f"{name}.*never calls it"):
        type("Ours", (PreferenceTrainer,), {name: override})


# Rows that TRL takes.

ROWS = {
    "identical responses": {"rejected": PAIR["chosen"]},
    "empty response": {"rejected": ""},
    "empty prompt": {"prompt": ""},
}


@pytest.mark.parametrize("fault", ROWS)
def test_rows(fault, tiny_model_dir, tmp_path):
    data = Dataset.from_list([PAIR, {**PAIR, **ROWS[fault]}])
    assert len(trl(tiny_model_dir, tmp_path, data).train_dataset) == 2
    with pytest.raises(DataError, match=fault):
        support.trainer(tiny_model_dir, tmp_path, data)
    assert len(support.trainer(tiny_model_dir, tmp_path, data, invalid_rows="drop").train_dataset) == 1


@pytest.mark.parametrize("column", ["image", "images"])
def test_images(column, tiny_model_dir, tmp_path):
    picture = {"bytes": None, "path": str(tmp_path / "none.png")}
    kind: Any = Image(decode=False)
    features = {name: Value("string") for name in ("prompt", "chosen", "rejected")}
    data = Dataset.from_list(
        [{**PAIR, column: picture if column == "image" else [picture]}],
        features=Features({**features, column: kind if column == "image" else Sequence(kind)}),
    )
    with pytest.raises(DataError, match=f"images aren't supported.*{column!r}.*DPOTrainer"):
        support.trainer(tiny_model_dir, tmp_path, data)


def test_unpaired_rows(tiny_model_dir, tmp_path):
    data = Dataset.from_list([{"prompt": PAIR["prompt"], "completion": PAIR["chosen"], "label": True}])
    with pytest.raises(KeyError, match="chosen"):
        trl(tiny_model_dir, tmp_path, data)
    with pytest.raises(DataError, match="prompt, completion, label"):
        support.trainer(tiny_model_dir, tmp_path, data)


def test_rows_without_a_completion_token_are_dropped_by_both(tiny_model_dir, tmp_path):
    data = Dataset.from_list([PAIR, {**PAIR, "prompt": PAIR["prompt"] * 10}])
    room = len(helpers.tiny_tokenizer()(PAIR["prompt"])["input_ids"]) + 1
    trainers = [make(tiny_model_dir, tmp_path, data, max_length=room) for make in (trl, support.trainer)]
    assert [len(trainer.train_dataset) for trainer in trainers] == [1, 1]


# Runs that TRL lets go on.


def test_a_run_that_is_not_finite(tiny_model_dir, tmp_path):
    def broken() -> Any:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        with torch.no_grad():
            model.lm_head.weight[0] = float("nan")
        return model

    data = helpers.pair_dataset(2)
    theirs = trl(broken(), tmp_path, data, max_steps=1)
    theirs.train()
    assert all(not torch.isfinite(weight).all() for weight in theirs.model.parameters())
    with pytest.raises(TrainingError):
        support.trainer(broken(), tmp_path, data, max_steps=1).train()


# What TRL refuses.


@pytest.mark.parametrize("streamed", ["train", "eval"])
def test_streamed_rows_with_precomputed_log_probs(streamed, tiny_model_dir, tmp_path):
    data = helpers.pair_dataset(4)
    stream = data.to_iterable_dataset()
    given = {"data": stream} if streamed == "train" else {"data": data, "eval_dataset": stream}
    with pytest.raises(ValueError, match="not supported with IterableDataset"):
        trl(tiny_model_dir, tmp_path, **given, precompute_ref_log_probs=True)
    losses = [
        support.train(support.trainer(tiny_model_dir, tmp_path, **given, precompute_ref_log_probs=stores)).losses
        for stores in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_stored_rows_are_evaluated_after_training(tiny_model_dir, tmp_path):
    data, late = helpers.pair_dataset(4), helpers.pair_dataset(4, seed=1)
    theirs = trl(tiny_model_dir, tmp_path, data, precompute_ref_log_probs=True)
    theirs.evaluate(late)
    theirs.train()
    with pytest.raises(ValueError, match="Cannot compute reference log-probs"):
        theirs.evaluate(late)

    losses = []
    for stores in (True, False):
        ours = support.trainer(tiny_model_dir, tmp_path, data, precompute_ref_log_probs=stores)
        ours.evaluate(late)
        ours.train()
        losses.append(ours.evaluate(late)["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_reference_that_moves_beside_an_adapter(tiny_model_dir, tmp_path):
    settings: dict[str, Any] = {"sync_ref_model": True, "ref_model_sync_steps": 1}
    data = helpers.pair_dataset(6)
    with pytest.raises(NotImplementedError, match="sync_ref_model"):
        trl(tiny_model_dir, tmp_path, data, peft_config=support.lora(), **settings)
    moves = support.train(support.trainer(tiny_model_dir, tmp_path, data, peft_config=support.lora(), **settings))
    stays = support.train(support.trainer(tiny_model_dir, tmp_path, data, peft_config=support.lora()))
    assert moves.losses[0] == stays.losses[0]
    assert moves.losses[-1] != pytest.approx(stays.losses[-1], rel=1e-4)


def test_a_reference_by_its_path(tiny_model_dir, tmp_path):
    data, other = helpers.pair_dataset(4), helpers.save_tiny_model(tmp_path / "other", seed=3)
    with pytest.raises(AttributeError):
        trl(tiny_model_dir, tmp_path, data, ref_model=other)
    second = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    support.assert_same_run(
        support.train(support.trainer(tiny_model_dir, tmp_path, data, ref_model=other, optim="sgd")),
        support.train(trl(tiny_model_dir, tmp_path, data, ref_model=second, optim="sgd")),
    )


def test_weights_of_wpo_with_hinge(tiny_model_dir, tmp_path):
    settings: dict[str, Any] = {"loss_type": "hinge", "use_weighting": True, "max_steps": 1}
    with pytest.raises(RuntimeError, match="inplace operation"):
        trl(tiny_model_dir, tmp_path, helpers.pair_dataset(2), **settings).train()
    run = support.train(support.trainer(tiny_model_dir, tmp_path, helpers.pair_dataset(2), **settings))
    assert all(torch.isfinite(gradient).all() for gradient in run.gradients[0].values())


# What is counted in another way.


def test_num_tokens_counts_what_is_computed(tiny_model_dir, tmp_path):
    data = helpers.pair_dataset(2)
    rows = trl(tiny_model_dir, tmp_path, data).train_dataset
    prompts, answers = (
        sum(len(row[name]) for row in rows for name in names)
        for names in (["prompt_ids"], ["chosen_ids", "rejected_ids"])
    )
    counted = {}
    for name, settings in {"trl": {}, **support.LAYOUTS}.items():
        make: Any = trl if name == "trl" else support.trainer
        run = support.train(make(tiny_model_dir, tmp_path, data, max_steps=1, **settings))
        counted[name] = run.logs[0]["num_tokens"]
    assert counted["trl"] == counted["padded"] == 2 * prompts + answers
    # The last token of a response predicts nothing, so only padded rows compute it.
    assert counted["packed"] == 2 * prompts + answers - 2 * len(rows)
    assert counted["shared"] == counted["shared_packed"] == prompts + answers - 2 * len(rows)


# What both train in the same way.

METHODS: dict[str, Any] = {
    "ia3": lambda: IA3Config(
        task_type=TaskType.CAUSAL_LM, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: LoHaConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"], r=2),
    "lokr": lambda: LoKrConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"], r=2),
    "oft": lambda: OFTConfig(task_type=TaskType.CAUSAL_LM, target_modules=["q_proj"], r=2, oft_block_size=0),
    "ln_tuning": lambda: LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=["input_layernorm"]),
    "prompt_tuning": lambda: PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4),
    "prefix_tuning": lambda: PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4),
}


@pytest.mark.parametrize("method", METHODS)
def test_adapters_that_are_not_lora(method, tiny_model_dir, tmp_path):
    runs = [
        support.train(make(tiny_model_dir, tmp_path, helpers.pair_dataset(4), peft_config=METHODS[method]()))
        for make in (support.trainer, trl)
    ]
    assert runs[1].losses[0] != runs[1].losses[-1]
    support.assert_same_run(*runs)
