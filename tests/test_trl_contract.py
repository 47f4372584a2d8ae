"""What this package takes from TRL and transformers beyond their documented interfaces, each name by itself.

TRL renames and drops methods between minor versions, and an override that nobody calls any more is dead without a
sound. A failure here says in a sentence what has changed.
"""

from __future__ import annotations

import collections
import inspect
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tests import helpers
from tests.training import support
from trl_dpo_ext._compat import trl as _trl
from trl_dpo_ext._compat.trl_trainer import HookedConfig, HookedTrainer
from trl_dpo_ext.training import PreferenceTrainer

VERSIONS = f"TRL {trl.__version__}, transformers {transformers.__version__}"

# Every method that PreferenceTrainer and its base HookedTrainer override: whose it is, and the parameters it is
# written for.
OVERRIDDEN: dict[str, tuple[type, list[str]]] = {
    "_prepare_dataset": (DPOTrainer, ["self", "dataset", "processing_class", "args", "dataset_name"]),
    "_set_signature_columns_if_needed": (DPOTrainer, ["self"]),
    "compute_loss": (DPOTrainer, ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
    "training_step": (Trainer, ["self", "model", "inputs", "num_items_in_batch"]),
    "floating_point_ops": (Trainer, ["self", "inputs"]),
    "evaluate": (DPOTrainer, ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
    "log": (DPOTrainer, ["self", "logs", "start_time"]),
    "prediction_step": (DPOTrainer, ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
    "_save_checkpoint": (Trainer, ["self", "model", "trial"]),
    "_save": (Trainer, ["self", "output_dir", "state_dict"]),
    "get_batch_samples": (Trainer, ["self", "epoch_iterator", "num_batches", "device"]),
    "_get_grad_norm": (Trainer, ["self", "model", "grad_norm"]),
    "_load_rng_state": (Trainer, ["self", "checkpoint"]),
    "_run_epoch": (
        Trainer,
        [
            *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ],
    ),
    "_maybe_log_save_evaluate": (
        Trainer,
        [
            *("self", "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
            "learning_rate",
        ],
    ),
}
# Public, called by the user: no signature of its own, everything is passed on.
PASSED_ON = {"__init__", "train", "push_to_hub", "create_model_card"}

# What DPOTrainer sets and this package reads, and the values in a plain run.
ATTRIBUTES: dict[str, Any] = {
    "_metrics": {"train": {}, "eval": {}},
    "_total_train_tokens": 0,
    "_tp_size": 1,
    "_signature_columns": None,
    "aux_loss_enabled": False,
    "router_aux_loss_coef": 0.0,
    "use_weighting": False,
    "is_fsdp_enabled": False,
    "precompute_ref_logps": False,
}


@pytest.fixture(scope="module")
def theirs(tiny_model_dir, tmp_path_factory):
    """TRL's own trainer."""
    args = DPOConfig(**helpers.training_args(tmp_path_factory.mktemp("theirs"), max_steps=1))
    return DPOTrainer(tiny_model_dir, args=args, train_dataset=helpers.pair_dataset(4))


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_have_the_parameters_they_had(name):
    owner, expected = OVERRIDDEN[name]
    method = getattr(owner, name, None)
    assert method is not None, f"{VERSIONS}: {owner.__name__}.{name}, which PreferenceTrainer overrides, is gone."
    found = list(inspect.signature(method).parameters)
    assert found == expected, (
        f"{VERSIONS}: {owner.__name__}.{name} takes {found}; PreferenceTrainer overrides it for {expected}."
    )


def test_every_override_is_listed_here():
    members = {**vars(HookedTrainer), **vars(PreferenceTrainer)}
    ours = {name for name, value in members.items() if callable(value) or isinstance(value, property)}
    overridden = {name for name in ours if hasattr(DPOTrainer, name)} - {"__init_subclass__"}
    assert overridden == {*OVERRIDDEN, *PASSED_ON}
    assert "ref_model" in ours - overridden  # an attribute there, a property here


@pytest.fixture(scope="module")
def calls(tiny_model_dir, tmp_path_factory):
    """Who called the overrides, and what set the reference, in a run that is saved, evaluated and resumed."""
    callers: dict[str, set[str]] = collections.defaultdict(set)
    references: list[Any] = []

    def watched(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            callers[name].add(sys._getframe(1).f_globals["__name__"].partition(".")[0])
            return getattr(PreferenceTrainer, name)(self, *args, **kwargs)

        return call

    def set_reference(self: Any, value: Any) -> None:
        references.append(value)
        PreferenceTrainer.ref_model.__set__(self, value)

    watching = type(
        "Watching",
        (PreferenceTrainer,),
        {name: watched(name) for name in OVERRIDDEN}
        | {"ref_model": property(lambda self: PreferenceTrainer.ref_model.__get__(self), set_reference)},
    )
    folder = tmp_path_factory.mktemp("ours")
    for resume in (False, True):
        trainer = support.trainer(
            tiny_model_dir,
            folder,
            helpers.ranked_dataset(4),
            eval_dataset=helpers.ranked_dataset(2),
            cls=watching,
            precompute_ref_log_probs=True,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            max_steps=2,
        )
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1") if resume else None)
        trainer.evaluate()
    return callers, references


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_are_called(name, calls):
    callers, _ = calls
    assert callers[name] & {"trl", "transformers"}, (
        f"{VERSIONS}: nothing calls {OVERRIDDEN[name][0].__name__}.{name} any more, so PreferenceTrainer's override is "
        f"dead (callers seen: {sorted(callers[name]) or 'none'})."
    )


def test_dpo_trainer_sets_ref_model_in_its_constructor(calls):
    _, references = calls
    assert references, (
        f"{VERSIONS}: DPOTrainer.__init__ no longer assigns self.ref_model, which is how PreferenceTrainer keeps a "
        "reference from being loaded."
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name, theirs):
    assert hasattr(theirs, name), f"{VERSIONS}: DPOTrainer no longer sets {name}, which PreferenceTrainer reads."
    found = getattr(theirs, name)
    assert found == ATTRIBUTES[name], (
        f"{VERSIONS}: DPOTrainer.{name} is {found!r} in a plain run; PreferenceTrainer expects {ATTRIBUTES[name]!r}."
    )


def test_what_a_resumed_run_sets(tiny_model_dir, tmp_path):
    """`HookedTrainer.restore_log_state` sets them again when training begins, after transformers has set them to 0."""
    args = DPOConfig(**helpers.training_args(tmp_path, max_steps=1))
    theirs = DPOTrainer(tiny_model_dir, args=args, train_dataset=helpers.pair_dataset(4))
    assert not hasattr(theirs, "_tr_loss"), f"{VERSIONS}: Trainer sets _tr_loss before train()."
    theirs.train()
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"):
        assert hasattr(theirs, name), f"{VERSIONS}: Trainer.train no longer sets {name}."
    seen = []

    class Watching(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            seen.append((theirs._tr_loss.item(), theirs._total_loss_scalar, theirs._globalstep_last_logged))

    theirs.add_callback(Watching())
    theirs.train()
    assert seen == [(0.0, 0.0, 0)], f"{VERSIONS}: Trainer sets its counters after on_train_begin: {seen}."


def test_saving_a_checkpoint(theirs):
    """`HookedTrainer._save_checkpoint` skips DPOTrainer's, which writes a card, and calls Trainer's."""
    source = inspect.getsource(DPOTrainer._save_checkpoint)
    assert "self.create_model_card(" in source
    assert "super()._save_checkpoint(model, trial)" in source
    assert theirs._get_output_dir(trial=None) == theirs.args.output_dir, f"{VERSIONS}: Trainer._get_output_dir."
    # A checkpoint is pushed by us, when it is whole: transformers does it only where `push_to_hub` is set.
    assert "if self.args.push_to_hub:\n            self._push_from_checkpoint(" in inspect.getsource(
        Trainer._save_checkpoint
    )


def test_saving_without_a_push():
    assert "_internal_call" in inspect.signature(Trainer.save_model).parameters, (
        f"{VERSIONS}: Trainer.save_model has no _internal_call, by which HookedTrainer.save_without_push avoids a push."
    )


def test_evaluation_skips_what_dpo_trainer_adds():
    """`HookedTrainer.evaluate_tokenized` calls Trainer.evaluate, whose parameters DPOTrainer.evaluate shares."""
    found = list(inspect.signature(Trainer.evaluate).parameters)
    assert found == ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"], f"{VERSIONS}: Trainer.evaluate."


def test_tags():
    assert isinstance(DPOTrainer._tag_names, list), f"{VERSIONS}: DPOTrainer._tag_names is no list any more."
    assert HookedTrainer._tag_names == [*DPOTrainer._tag_names, "trl-dpo-ext"]


def test_fields_that_may_be_json():
    assert "model_init_kwargs" in DPOConfig._VALID_DICT_FIELDS, f"{VERSIONS}: DPOConfig._VALID_DICT_FIELDS."
    assert [*DPOConfig._VALID_DICT_FIELDS, "loss_kwargs"] == HookedConfig._VALID_DICT_FIELDS


def test_dpo_trainer_logs_what_stands_in_metrics(theirs):
    theirs.model.train()
    theirs._metrics["train"]["a_metric"] += [1.0, 3.0]
    theirs.log({"loss": 0.5})
    assert theirs.state.log_history[-1].get("a_metric") == 2.0, (
        f"{VERSIONS}: DPOTrainer.log no longer logs the mean of what _metrics['train'] holds; PreferenceTrainer's "
        "metrics would be lost."
    )
    assert not theirs._metrics["train"], f"{VERSIONS}: DPOTrainer.log no longer clears _metrics."


def test_the_number_of_micro_batches_is_known_while_training(theirs):
    seen = []

    class Watching(DPOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            seen.append((getattr(self, "current_gradient_accumulation_steps", None), "num_items_in_batch" in kwargs))
            return super().compute_loss(*args, **kwargs)

    args = DPOConfig(**helpers.training_args(theirs.args.output_dir, max_steps=1, gradient_accumulation_steps=2))
    watching = Watching(
        theirs.model, args=args, train_dataset=helpers.pair_dataset(4), processing_class=theirs.processing_class
    )
    watching.train()
    assert seen == [(2, True)] * 2, (
        f"{VERSIONS}: Trainer no longer sets current_gradient_accumulation_steps, or no longer passes "
        "num_items_in_batch to compute_loss; PreferenceTrainer scales its loss by both."
    )
    assert DPOTrainer.loss_is_scaled_for_ga is False, (
        f"{VERSIONS}: loss_is_scaled_for_ga is {DPOTrainer.loss_is_scaled_for_ga!r}; PreferenceTrainer counts on "
        "Trainer to divide its loss by the number of micro-batches."
    )


def test_gradients_of_a_part_of_a_micro_batch(theirs):
    state = theirs.accelerator.gradient_state
    assert hasattr(state, "plugin_kwargs"), f"{VERSIONS}: accelerate's GradientState has no plugin_kwargs any more."
    state._set_sync_gradients(False)
    off = theirs.accelerator.sync_gradients
    state._set_sync_gradients(True)
    assert (off, theirs.accelerator.sync_gradients) == (False, True), (
        f"{VERSIONS}: GradientState._set_sync_gradients no longer sets Accelerator.sync_gradients; with DeepSpeed, "
        "responses_per_pass would update the weights after each pass."
    )


def test_the_fused_head(theirs):
    ids = torch.arange(10, 22).view(2, 6)
    labels = ids.masked_fill(torch.arange(6) < 2, -100)
    outputs = theirs.model(input_ids=ids, labels=labels, use_cache=False, fused_lm_head=True)
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
        value = getattr(outputs, name, None)
        assert value is not None, f"{VERSIONS}: model(..., fused_lm_head=True) gives no {name} any more."
        assert value.shape == (2, 5), f"{VERSIONS}: {name} has the shape {tuple(value.shape)}, expected (2, 5)."
    for name in ("log_sum_sq_probs", "aux_loss"):
        assert hasattr(outputs, name), f"{VERSIONS}: model(..., fused_lm_head=True) gives no {name} any more."
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    again = theirs.model(input_ids=ids, shift_labels=shifted, use_cache=False, fused_lm_head=True)
    assert again.log_probs.shape == (2, 6), f"{VERSIONS}: shift_labels no longer gives a log-prob for every position."
    assert torch.allclose(again.log_probs[:, :5], outputs.log_probs, atol=1e-5)


# trl_dpo_ext/_compat/trl.py


def test_a_second_model_is_loaded_as_dpo_trainer_does(tiny_model_dir, tmp_path):
    """Same class, dtype and attention as the policy; `DPOTrainer` loads it where no ref_model is given."""
    args = DPOConfig(**helpers.training_args(tmp_path, max_steps=1))
    theirs = DPOTrainer(tiny_model_dir, args=args, train_dataset=helpers.pair_dataset(4))
    ours = _trl.load_reference(theirs.model, args, None)
    assert type(ours) is type(theirs.ref_model)
    assert (ours.dtype, ours.config._attn_implementation) == (
        theirs.ref_model.dtype,
        theirs.ref_model.config._attn_implementation,
    )
    for name, weight in theirs.ref_model.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name
    prepared = _trl.prepare_reference(ours, theirs)
    ids = torch.arange(10, 22).view(2, 6)
    outputs = prepared(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
    assert torch.allclose(
        outputs.log_probs, theirs.ref_model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True).log_probs
    )


def test_the_processing_class(theirs, tiny_model_dir):
    for model in (tiny_model_dir, theirs.model):
        loaded = _trl.load_processing_class(model, theirs.args)
        assert type(loaded) is type(theirs.processing_class), f"{VERSIONS}: DPOTrainer loads another processing class."
        assert loaded.get_vocab() == theirs.processing_class.get_vocab()
    assert _trl.text_tokenizer(loaded) is loaded


def test_a_policy_is_loaded_by_what_a_sweep_gives(tiny_model_dir, tmp_path):
    """Without it, each run of a sweep would load the base model again."""
    asked = []

    def load(create, path, **options):
        asked.append(path)
        return create(path, **options)

    args = DPOConfig(**helpers.training_args(tmp_path, max_steps=1))
    with _trl.loading_policies_with(load):
        DPOTrainer(tiny_model_dir, args=args, train_dataset=helpers.pair_dataset(2), peft_config=LoraConfig())
    assert asked == [tiny_model_dir], f"{VERSIONS}: DPOTrainer loads its policy in another way."
    DPOTrainer(tiny_model_dir, args=args, train_dataset=helpers.pair_dataset(2), peft_config=LoraConfig())
    assert len(asked) == 1


def test_everything_private_stands_in_one_file():
    assert set(_trl.__all__) == {
        "FusedCausalLMOutput",
        "add_fused_lm_head",
        "head_as_on_a_gpu",
        "load_processing_class",
        "load_reference",
        "loading_policies_with",
        "plain_dpo_config",
        "prepare_reference",
        "run_fused_head",
        "text_tokenizer",
        "use_adapter",
    }


def test_the_head_runs_alone_on_what_the_backbone_gave():
    """ZeRO-3 needs the head apart from the backbone, so that it can gather its weight."""
    model = helpers.tiny_model(helpers.tiny_tokenizer())
    _trl.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.arange(10, 22).view(2, 6)
    labels = ids.roll(-1, 1)
    whole = model(input_ids=ids, shift_labels=labels, use_cache=False, fused_lm_head=True)
    backbone = model.base_model(input_ids=ids, use_cache=False)
    alone = _trl.run_fused_head(model.forward, model.lm_head, backbone, shift_labels=labels)
    assert torch.equal(alone.log_probs, whole.log_probs), f"{VERSIONS}: the fused forward reads more of the model."
    assert torch.equal(alone.entropy, whole.entropy)


def test_the_head_runs_with_gpu_kernels_that_compute_nothing():
    """The memory estimate counts what the head allocates around its Triton kernels."""
    model = helpers.tiny_model(helpers.tiny_tokenizer())
    _trl.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    ids = torch.arange(10, 22).view(2, 6)
    with _trl.head_as_on_a_gpu():
        outputs = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
        outputs.log_probs.sum().backward()
    assert model.lm_head.weight.grad is not None
    assert not outputs.mean_logits.any(), f"{VERSIONS}: the fused head has another kernel than those replaced."
    plain = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
    assert plain.mean_logits.any()


def test_use_adapter():
    found = list(inspect.signature(_trl.use_adapter).parameters)
    assert found == ["model", "adapter_name"], f"{VERSIONS}: use_adapter takes {found}."
    base = helpers.tiny_model(helpers.tiny_tokenizer())
    ids = torch.arange(10, 22).view(2, 6)
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        model = get_peft_model(base, support.lora(init_lora_weights=False)).eval()
        model.add_adapter("ref", support.lora(init_lora_weights=False))
        default = model(input_ids=ids).logits
        with _trl.use_adapter(model, None):
            assert torch.equal(model(input_ids=ids).logits, plain)
        with _trl.use_adapter(model, "ref"):
            assert model.active_adapter == "ref"
            other = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, default)
    assert not torch.allclose(other, default)
    assert not torch.allclose(other, plain)


def test_plain_dpo_config(tmp_path):
    missing = set(_trl._LOSS_FIELDS) - {field.name for field in fields(DPOConfig)}
    assert not missing, f"{VERSIONS}: DPOConfig no longer has {sorted(missing)}."
    plain = DPOConfig(**helpers.training_args(tmp_path))
    args = support.config(tmp_path, loss_type=["ipo", "sft"], loss_weights=[1.0, 2.0], beta=0.3)
    before = {name: getattr(args, name) for name in _trl._LOSS_FIELDS}

    def fail() -> None:
        with _trl.plain_dpo_config(args):
            for name in _trl._LOSS_FIELDS:
                assert getattr(args, name) == getattr(plain, name), (
                    f"{VERSIONS}: the default of DPOConfig.{name} is {getattr(plain, name)!r}."
                )
            raise KeyError("as DPOTrainer.__init__ may")

    with pytest.raises(KeyError):
        fail()
    assert {name: getattr(args, name) for name in _trl._LOSS_FIELDS} == before


def test_what_the_fused_head_returns(theirs):
    """The model's own head returns the same class, with the fields that this package reads."""
    found = {field.name for field in fields(_trl.FusedCausalLMOutput)}
    read = {"log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs", "aux_loss"}
    assert read <= found, f"{VERSIONS}: FusedCausalLMOutput has lost {sorted(read - found)}."
