"""The configuration passes settings to the right losses, and rejects mistakes with a message that says how to fix them.

No test loads a model.
"""

from __future__ import annotations

from typing import Any

import pytest
from trl import DPOConfig

from tests.training import support
from trl_dpo_ext.losses import HyperparameterError
from trl_dpo_ext.registry import UnknownNameError
from trl_dpo_ext.training import (
    ConfigError,
    MinorDPOTrainer,
    PlackettLuceTrainer,
    PreferenceConfig,
    ReferenceFreeTrainer,
)


def hyperparameters(folder: Any, **settings: Any) -> dict[str, dict[str, Any]]:
    terms = support.config(folder, **settings).objective().terms
    return {term.spec.name: dict(term.hyperparameters) for term in terms}


def test_each_loss_has_its_own_defaults(tmp_path):
    assert hyperparameters(tmp_path) == {"dpo": {"beta": 0.1}}
    assert hyperparameters(tmp_path, loss_type=["simpo", "ipo"]) == {
        "simpo": {"beta": 2.0, "gamma_beta_ratio": 0.5},
        "ipo": {"tau": 0.1},
    }


def test_trls_fields_reach_every_loss_that_has_them(tmp_path):
    settings = {"loss_type": ["sigmoid", "ipo", "discopop", "robust", "sft"]}
    assert hyperparameters(tmp_path, beta=0.3, discopop_tau=0.2, label_smoothing=0.25, **settings) == {
        "dpo": {"beta": 0.3},
        "ipo": {"tau": 0.3},
        "discopop": {"beta": 0.3, "tau": 0.2},
        "robust": {"beta": 0.3, "label_smoothing": 0.25},
        "sft": {},
    }


def test_trls_own_defaults_mean_nothing_to_losses_without_them(tmp_path):
    given = {"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05}
    assert {name: getattr(DPOConfig(str(tmp_path), bf16=False), name) for name in given} == given
    assert hyperparameters(tmp_path, loss_type=["sigmoid", "sft"], **given) == {"dpo": {"beta": 0.1}, "sft": {}}
    assert hyperparameters(tmp_path, loss_type="sft", **given) == {"sft": {}}
    # A loss that has these fields uses them, whatever its own default is.
    assert hyperparameters(tmp_path, loss_type="robust", **given) == {"robust": {"beta": 0.1, "label_smoothing": 0.0}}


def test_loss_kwargs_come_before_trls_fields(tmp_path):
    given = {"loss_type": ["dpo", "ipo"], "beta": 0.3, "loss_kwargs": {"sigmoid": {"beta": 0.4}}}
    assert hyperparameters(tmp_path, **given) == {"dpo": {"beta": 0.4}, "ipo": {"tau": 0.3}}


def test_loss_kwargs_may_be_json_as_on_the_command_line(tmp_path):
    assert hyperparameters(tmp_path, loss_type="simpo", loss_kwargs='{"simpo": {"beta": 3}}') == {
        "simpo": {"beta": 3.0, "gamma_beta_ratio": 0.5}
    }


def test_weights_go_with_the_losses(tmp_path):
    objective = support.config(tmp_path, loss_type=["dpo", "sft"], loss_weights=[0.5, 2.0]).objective()
    assert [(term.spec.name, term.weight) for term in objective.terms] == [("dpo", 0.5), ("sft", 2.0)]


def test_what_the_losses_need_is_known(tmp_path):
    def objective(**settings: Any) -> Any:
        return support.config(tmp_path, **settings).objective()

    assert objective(loss_type=["sft", "dpo"]).reads_reference
    assert not objective(loss_type=["sft", "simpo"]).reads_reference
    assert objective(loss_type=["dpo", "odpo", "dpo_rk"]).needs == {"scores", "ties"}
    assert objective(loss_type="dpo", ld_alpha=0.5).needs == {"token_logps"}
    assert objective(loss_type="dpo", humanline=[-1.0, 1.5]).needs == {"token_logps"}
    assert objective(loss_type=["sft", "ipo"], beta=0.3).reward_scale == 0.3


# Settings that can't work: the type of the error, and the parts that its message must contain.
MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "unknown loss": ({"loss_type": "placket_luce"}, UnknownNameError, ["'placket_luce'", "plackett_luce"]),
    "no loss": ({"loss_type": []}, ConfigError, ["loss_type", "at least one"]),
    "unknown loss in loss_kwargs": (
        {"loss_type": "simpo", "loss_kwargs": {"simp": {"beta": 1.0}}},
        UnknownNameError,
        ["'simp'", "simpo"],
    ),
    "unknown hyperparameter": (
        {"loss_type": "simpo", "loss_kwargs": {"simpo": {"gama_beta_ratio": 0.5}}},
        HyperparameterError,
        ["simpo", "'gama_beta_ratio'", "gamma_beta_ratio"],
    ),
    "hyperparameter out of range": (
        {"loss_type": "robust", "label_smoothing": 0.5},
        HyperparameterError,
        ["robust", "label_smoothing=0.5", ">= 0, < 0.5"],
    ),
    "beta out of range": ({"loss_type": "dpo", "beta": 0}, HyperparameterError, ["dpo", "beta=0", "> 0"]),
    "hyperparameter of the wrong type": (
        {"loss_type": "dpo", "loss_kwargs": {"dpo": {"beta": "big"}}},
        HyperparameterError,
        ["dpo", "beta='big'", "float"],
    ),
    "hyperparameters of another loss": (
        {"loss_type": "dpo", "loss_kwargs": {"simpo": {"beta": 2.0}}},
        HyperparameterError,
        ["'simpo'", "['dpo']"],
    ),
    "loss_kwargs without the loss": (
        {"loss_type": "dpo", "loss_kwargs": {"dpo": 0.1}},
        HyperparameterError,
        ["loss_kwargs['dpo']=0.1", "mapping"],
    ),
    "loss_kwargs that is a list": ({"loss_kwargs": [1]}, ConfigError, ["loss_kwargs=[1]", "map"]),
    "beta for a loss without one": ({"loss_type": "sft", "beta": 0.3}, HyperparameterError, ["beta=0.3", "['sft']"]),
    "label_smoothing for losses without it": (
        {"loss_type": ["sigmoid", "ipo"], "label_smoothing": 0.1},
        HyperparameterError,
        ["label_smoothing=0.1", "['sigmoid', 'ipo']"],
    ),
    "discopop_tau for a loss without it": (
        {"loss_type": "sigmoid", "discopop_tau": 0.1},
        HyperparameterError,
        ["discopop_tau=0.1", "['sigmoid']"],
    ),
    "too few weights": ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0]}, ValueError, ["loss_weights", "2", "1"]),
    "batches handed out by the main process": (
        {"accelerator_config": {"dispatch_batches": True}},
        ConfigError,
        ["dispatch_batches=True", "unset"],
    ),
    "unknown pairing": ({"pairing": "adjacnt"}, ConfigError, ["pairing='adjacnt'", "'adjacent'", "best_vs_rest"]),
    "unknown invalid_rows": ({"invalid_rows": "ignore"}, ConfigError, ["invalid_rows='ignore'", "error, drop"]),
    "unknown prefix_sharing": ({"prefix_sharing": "on"}, ConfigError, ["prefix_sharing='on'", "auto, true, false"]),
    "unknown f-divergence": (
        {"f_divergence_type": "forward_k"},
        ConfigError,
        ["f_divergence_type='forward_k'", "'forward_kl'"],
    ),
    "f-divergence with a loss that can't": (
        {"loss_type": ["dpo", "nca_pair"], "f_divergence_type": "js_divergence"},
        ConfigError,
        ["f_divergence_type='js_divergence'", "nca_pair", "reverse_kl"],
    ),
    "WPO with a listwise loss": (
        {"loss_type": ["dpo", "plackett_luce"], "use_weighting": True},
        ConfigError,
        ["use_weighting", "plackett_luce", "listwise"],
    ),
    "WPO with a loss that couples the batch": (
        {"loss_type": "aot", "use_weighting": True},
        ConfigError,
        ["use_weighting", "aot", "couples"],
    ),
    "keep_end": ({"truncation_mode": "keep_end"}, ConfigError, ["truncation_mode='keep_end'", "'keep_start'"]),
    "max_length too small": ({"max_length": 1}, ConfigError, ["max_length=1"]),
    "ld_alpha out of range": ({"ld_alpha": 1.5}, ConfigError, ["ld_alpha=1.5", ">= 0", "<= 1"]),
    "precomputing a reference that nothing reads": (
        {"loss_type": "simpo", "precompute_ref_log_probs": True},
        ConfigError,
        ["precompute_ref_log_probs", "['simpo']", "Remove"],
    ),
    "syncing a reference that nothing reads": (
        {"loss_type": ["simpo", "sft"], "sync_ref_model": True},
        ConfigError,
        ["sync_ref_model", "['simpo', 'sft']", "Remove"],
    ),
    "ld_alpha where nothing reads a reference": (
        {"loss_type": "cpo", "ld_alpha": 0.5},
        ConfigError,
        ["ld_alpha", "['cpo']", "Remove"],
    ),
    "humanline where nothing reads a reference": (
        {"loss_type": "cpo", "humanline": [-1.0, 1.5]},
        ConfigError,
        ["humanline", "['cpo']", "Remove"],
    ),
    "humanline with one limit": ({"humanline": [1.5]}, ConfigError, ["humanline=[1.5]", "[-1.0, 1.5]"]),
    "humanline the wrong way round": ({"humanline": [1.5, -1.0]}, ConfigError, ["one below 0"]),
    "humanline without a limit": ({"humanline": [-1.0, float("inf")]}, ConfigError, ["finite"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path):
    settings, error, parts = MISTAKES[mistake]
    with pytest.raises(error) as raised:
        support.config(tmp_path, **settings)
    for part in parts:
        assert part in str(raised.value)


# The thin trainers


def refused(trainer: Any, args: Any) -> str:
    # The losses are checked first, so no model is needed.
    with pytest.raises(ConfigError) as raised:
        trainer(model=None, args=args, train_dataset=None)
    return str(raised.value)


def test_thin_trainers_refuse_losses_that_are_not_theirs(tmp_path):
    message = refused(ReferenceFreeTrainer, support.config(tmp_path, loss_type=["simpo", "ipo"]))
    assert "['simpo', 'ipo']" in message
    assert "PreferenceTrainer" in message
    assert "'minor_dpo'" in refused(MinorDPOTrainer, support.config(tmp_path, loss_type="dpop"))
    assert "['hinge']" in refused(PlackettLuceTrainer, support.config(tmp_path, loss_type="hinge"))


def test_a_default_loss_is_checked_against_the_other_settings(tmp_path):
    args = support.config(tmp_path, precompute_ref_log_probs=True)  # fine with DPO
    assert "precompute_ref_log_probs" in refused(ReferenceFreeTrainer, args)


def test_a_loss_that_is_given_is_not_the_default(tmp_path):
    """`sigmoid` is the default of `loss_type`; given, it is no wish for SimPO."""
    assert "sigmoid" in refused(ReferenceFreeTrainer, support.config(tmp_path, loss_type="sigmoid"))
    assert "sigmoid" in refused(MinorDPOTrainer, support.config(tmp_path, loss_type=["sigmoid"]))


@pytest.mark.parametrize(
    ("trainer", "default", "other"),
    [
        (ReferenceFreeTrainer, "simpo", ["orpo", "sft"]),
        (MinorDPOTrainer, "minor_dpo", ["minor_dpo", "sft"]),
        (PlackettLuceTrainer, "plackett_luce", ["softmax_dpo"]),
    ],
)
def test_thin_trainers_have_a_default_loss(trainer, default, other, tmp_path):
    for losses, expected in ((None, [default]), (other, other)):
        args = PreferenceConfig(str(tmp_path), use_cpu=True, bf16=False, **({"loss_type": losses} if losses else {}))
        with pytest.raises(ValueError, match="train_dataset"):  # the losses are valid, so the next check fails
            trainer(model="no/model", args=args)
        assert args.loss_type == expected


def test_trl_s_defaults_spelled_out_are_accepted_by_losses_without_them(tmp_path):
    """A TRL config that states its defaults moves over unchanged."""
    args = support.config(tmp_path, loss_type="sft", beta=0.1, label_smoothing=0.0)
    (term,) = args.objective().terms
    assert "beta" not in term.hyperparameters


@pytest.mark.parametrize(
    ("setting", "value"), [("label_smoothing_factor", 0.1), ("train_sampling_strategy", "group_by_length")]
)
def test_settings_that_would_do_nothing_are_refused(setting, value, tmp_path):
    with pytest.raises(ConfigError, match=setting):
        support.config(tmp_path, **{setting: value})
