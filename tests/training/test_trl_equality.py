"""On pairs, this package's trainer is TRL's: what it computes equals what the installed `trl.DPOTrainer` computes."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from trl import DPOConfig, DPOTrainer

from tests import helpers
from tests.training import support
from trl_dpo_ext import get_loss
from trl_dpo_ext.training import ConfigError

# Keys of TRL's log that must be in ours too, so that the comparison can't pass because one has gone missing.
METRICS = {
    "loss",
    "grad_norm",
    "learning_rate",
    "entropy",
    "num_tokens",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}


def both(model: Any, folder: Any, *, rows: int = 6, conversational: bool = False, **changes: Any) -> tuple[Any, Any]:
    """The two trainers on the same pairs: ours, and TRL's. `model` is a folder, or makes one model per call."""
    own = {"ref_model", "peft_config"}
    given = {name: changes.pop(name) for name in own & set(changes)}
    settings = helpers.training_args(folder, max_grad_norm=1e9, **{"beta": 0.1, **changes})
    trainers = []
    for trainer, args in (
        (support.PreferenceTrainer, support.PreferenceConfig(**settings, **support.PADDED)),
        (DPOTrainer, DPOConfig(**settings)),
    ):
        trainers.append(
            trainer(
                model=model if isinstance(model, str) else model(),
                args=args,
                train_dataset=helpers.pair_dataset(rows, conversational=conversational),
                # Five rows, so that the last evaluation batch is smaller.
                eval_dataset=helpers.pair_dataset(5, seed=1, conversational=conversational),
                **{name: value() if callable(value) else value for name, value in given.items()},
            )
        )
    return trainers[0], trainers[1]


def moved(model_dir: str) -> Any:
    """The model of the folder with its weights changed in memory."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.005 * torch.randn(weight.shape, generator=generator)
    return model


def trained_adapter(model_dir: str) -> Any:
    """The model of the folder with an adapter that isn't zero."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(5)
    return get_peft_model(model, support.lora(init_lora_weights=False))


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full_checkpointing": {"gradient_checkpointing": True},
    "lora": {"peft_config": support.lora},
    "lora_checkpointing": {"peft_config": support.lora, "gradient_checkpointing": True},
    "conversational": {"conversational": True},
    "truncated": {"max_length": 24},
    "precomputed": {"precompute_ref_log_probs": True},
    "lora_precomputed": {"peft_config": support.lora, "precompute_ref_log_probs": True},
    "synced_reference": {"sync_ref_model": True, "ref_model_sync_steps": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_and_an_evaluation(case, tiny_model_dir, tmp_path):
    ours, theirs = both(tiny_model_dir, tmp_path, **CASES[case])
    _compare(ours, theirs)


def test_a_tokenizer_that_begins_with_bos(tiny_bos_model_dir, tmp_path):
    _compare(*both(tiny_bos_model_dir, tmp_path))


def test_a_model_in_memory(tiny_model_dir, tmp_path):
    _compare(*both(lambda: AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), tmp_path))


def test_a_pretrained_adapter(tiny_model_dir, tmp_path):
    ours, theirs = both(lambda: trained_adapter(tiny_model_dir), tmp_path)
    _compare(ours, theirs)
    assert set(ours.model.peft_config) == {"default", "ref"}


@pytest.mark.parametrize("peft", [False, True])
def test_a_given_reference(peft, tiny_model_dir, tmp_path):
    ours, theirs = both(
        (lambda: trained_adapter(tiny_model_dir)) if peft else tiny_model_dir,
        tmp_path,
        ref_model=lambda: moved(tiny_model_dir),
    )
    _compare(ours, theirs)
    assert ours.state.log_history[0]["rewards/margins"] != 0  # so it isn't the policy


def test_mixture_of_experts(tmp_path):
    tokenizer = helpers.tiny_tokenizer()
    torch.manual_seed(0)
    settings = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.5,
        initializer_range=0.2,
    )
    MixtralForCausalLM(settings).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    # Not Adam: it divides rounding errors by themselves where an expert sees next to no gradient.
    ours, theirs = both(str(tmp_path / "model"), tmp_path, optim="sgd")
    _compare(ours, theirs)
    assert ours.state.log_history[0]["aux_loss"] > 1
    assert ours.state.log_history[-1]["eval_aux_loss"] > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},  # MPO
        {"loss_type": "robust", "label_smoothing": 0.2, "ld_alpha": 0.4, "precompute_ref_log_probs": True},
    ],
    ids=["mix", "precomputed"],
)
def test_three_steps_of_other_losses(changes, tiny_model_dir, tmp_path):
    _compare(*both(tiny_model_dir, tmp_path, **changes))


# Means over tokens. TRL averages those of the micro-batches; here they are means over all tokens of the step.
OVER_TOKENS = {"entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"}


def test_three_accumulated_steps(tiny_model_dir, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    runs = [support.train(t) for t in both(tiny_model_dir, tmp_path, loss_type="ipo", beta=0.3, **settings)]
    for log in (log for run in runs for log in run.logs):
        assert {log.pop(name, None) for name in OVER_TOKENS} != {None}
    support.assert_same_run(*runs)


# One batch, every loss that TRL has, and the settings that multiply them. Given explicitly: TRL has one default for all
# losses, here each has that of its paper.

HELP = {f.name: f.metadata["help"] for f in fields(DPOConfig) if "help" in f.metadata}
# From TRL's own documentation, so that a loss that TRL adds is seen to be missing here.
LOSS_TYPES = re.findall(r"`'(\w+)'`", HELP["loss_type"].partition("If multiple")[0])
DIFFERENCES = re.findall(r"`'(\w+)'`", HELP["f_divergence_type"].partition("chosen-rejected")[2])
GIVEN = {"beta": 0.5, "label_smoothing": 0.2, "discopop_tau": 0.3}


def test_trl_still_documents_its_losses_as_these_tests_read_them():
    assert len(LOSS_TYPES) >= 15
    assert set(DIFFERENCES) <= set(LOSS_TYPES)
    assert len(DIFFERENCES) >= 8


@pytest.fixture(scope="module")
def one_batch(tiny_model_dir, tmp_path_factory):
    """Both trainers with the same policy, which isn't its reference, and the same batch."""
    ours, theirs = both(tiny_model_dir, tmp_path_factory.mktemp("one_batch"), use_weighting=True)
    batches = []
    for trainer in (ours, theirs):
        trainer.model.load_state_dict(moved(tiny_model_dir).state_dict())
        trainer.model.train()
        batches.append(trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(6)])))
    return ours, theirs, batches


def compare_one_batch(one_batch: Any, loss_type: str | list[str], rtol: float = 1e-5, **settings: Any) -> None:
    ours, theirs, batches = one_batch
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    # TRL passes over what none of its losses reads; here it would be refused.
    known = {name: value for name, value in GIVEN.items() if any(name in get_loss(n).trl_fields for n in names)}
    support.set_losses(ours, loss_type=names, **known, **settings)

    plain = {**GIVEN, **settings}
    theirs.loss_types, theirs.loss_weights = names, plain.get("loss_weights", [1.0] * len(names))
    theirs.beta, theirs.label_smoothing = plain["beta"], plain["label_smoothing"]
    theirs.args.discopop_tau = plain["discopop_tau"]
    theirs.ld_alpha, theirs.use_weighting = plain.get("ld_alpha"), plain.get("use_weighting", False)
    theirs.f_divergence_type = plain.get("f_divergence_type", "reverse_kl")
    theirs.f_alpha_divergence_coef = plain.get("f_alpha_divergence_coef", 0.5)

    results = []
    for trainer, inputs in zip((ours, theirs), batches, strict=True):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters()}))
    (value, gradients), (expected, others) = results
    assert value == pytest.approx(expected, rel=rtol)
    support.assert_same_tensors(gradients, others, rtol)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_each_loss_type(loss_type, one_batch):
    compare_one_batch(one_batch, loss_type)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "sft"])
def test_each_loss_type_with_length_weighting(loss_type, one_batch):
    compare_one_batch(one_batch, loss_type, ld_alpha=0.4)


# TRL 1.16 can't train hinge with these weights: it multiplies the output of relu in place, and autograd refuses.
@pytest.mark.parametrize("loss_type", [n for n in LOSS_TYPES if n not in ("aot", "aot_unpaired", "sft", "hinge")])
def test_each_loss_type_with_wpo_weights(loss_type, one_batch):
    compare_one_batch(one_batch, loss_type, use_weighting=True)


@pytest.mark.parametrize("loss_type", [name for name in DIFFERENCES if name != "sft"])
def test_each_loss_type_with_each_f_divergence(loss_type, one_batch):
    # The exponential of a log-ratio has the relative error that log-probs of about -100 have absolutely.
    for settings in (
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.7},
    ):
        compare_one_batch(one_batch, loss_type, rtol=3e-5, **settings)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_f_divergences_work_with_the_same_losses(loss_type, tmp_path):
    settings = {"loss_type": loss_type, "f_divergence_type": "forward_kl"}
    if loss_type in DIFFERENCES:
        support.config(tmp_path, **settings)
    else:
        with pytest.raises(ConfigError, match="reverse_kl"):
            support.config(tmp_path, **settings)


def test_mixes(one_batch):
    compare_one_batch(one_batch, ["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    compare_one_batch(one_batch, ["ipo", "sigmoid_norm", "apo_zero"], loss_weights=[0.01, 2.0, 0.5], ld_alpha=0.6)
    compare_one_batch(one_batch, ["hinge", "sft"], f_divergence_type="js_divergence")
    compare_one_batch(one_batch, LOSS_TYPES)


def _compare(ours: Any, theirs: Any) -> None:
    run, expected = support.train(ours), support.train(theirs)
    assert len(expected.losses) == 3
    assert run.logs[0].keys() >= METRICS
    assert expected.logs[0].keys() >= METRICS
    support.assert_same_run(run, expected)
    evaluation, other = ours.evaluate(), theirs.evaluate()
    assert evaluation.keys() == other.keys()
    support.assert_same_logs([evaluation], [other])
    assert {f"eval_{name}" for name in METRICS - {"grad_norm", "learning_rate"}} <= other.keys()
