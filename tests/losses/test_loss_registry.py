"""What the decorator reads from a function, and what it refuses."""

import dataclasses
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Annotated

import annotated_types as at
import pytest
import torch
from torch import Tensor
from trl import DPOConfig

from trl_dpo_ext import PreferencePairs, RankedResponses, get_loss, list_losses, register_loss
from trl_dpo_ext.losses import TRL_LOSS_FIELDS, HyperparameterError, families
from trl_dpo_ext.losses.loss_docs import built_in
from trl_dpo_ext.registry import NameCollisionError, RegistryError, UnknownNameError
from trl_dpo_ext.testing import temporary_losses


@pytest.fixture(autouse=True)
def _leave_the_registry_as_it_was():
    with temporary_losses():
        yield


def test_facts_are_read_from_the_function():
    def my_statistic(pairs, *, beta, count, mode):
        return pairs.margins

    def my_metrics(pairs, *, beta, count, mode):
        return {"half": pairs.margins / 2}

    @register_loss(
        "my_loss",
        paper="1234.56789",
        aliases=["mine"],
        reference_free=True,
        needs=["scores", "ties"],
        length_normalized=True,
        f_divergence=True,
        trl_fields={"discopop_tau": "count"},
        couples_batch=True,
        statistic=my_statistic,
        momentum=0.5,
        metrics=my_metrics,
    )
    def my_loss(
        pairs: PreferencePairs,
        *,
        beta: Annotated[float, at.Interval(gt=0, le=2)] = 0.5,
        count: Annotated[int | None, at.Ge(1)] = None,
        mode: str = "a",
    ) -> Tensor:
        """One line.

        And more.

        Equation:
            a
              b
            where:
              c

        Relations:
            None.
        Returns?
        """

    spec = get_loss("mine")
    assert spec is get_loss("my_loss")
    assert spec in list_losses()
    assert spec.fn is my_loss
    assert (spec.name, spec.aliases, spec.paper) == ("my_loss", ("mine",), "1234.56789")
    assert spec.needs == {"scores", "ties"}
    assert spec.reference_free
    assert spec.length_normalized
    assert spec.f_divergence
    assert spec.couples_batch
    assert not spec.listwise
    assert (spec.statistic, spec.momentum, spec.metrics) == (my_statistic, 0.5, my_metrics)
    assert dict(spec.trl_fields) == {"beta": "beta", "discopop_tau": "count"}
    assert spec.beta == "beta"
    assert spec.summary == "One line."
    # A heading is a whole line: a section's name and a colon.
    assert spec.sections == {"Equation": "a\n  b\nwhere:\n  c", "Relations": "None.\nReturns?"}
    assert spec.origin.rpartition(":")[0].endswith("test_loss_registry.py")
    beta, count, mode = spec.hyperparameters.values()
    assert (beta.name, beta.type, beta.optional, beta.default) == ("beta", float, False, 0.5)
    assert beta.bounds == ((">", 0), ("<=", 2))
    assert beta.bounds_text == "> 0, <= 2"
    assert (count.name, count.type, count.optional, count.default, count.bounds) == (
        "count",
        int,
        True,
        None,
        ((">=", 1),),
    )
    assert (mode.type, mode.bounds_text) == (str, "")
    assert spec.check({"count": 3}) == {"beta": 0.5, "count": 3, "mode": "a"}


def test_facts_can_t_be_changed():
    spec = get_loss("dpo")
    with pytest.raises(FrozenInstanceError):
        spec.reference_free = True
    with pytest.raises(FrozenInstanceError):
        spec.hyperparameters["beta"].default = 0.2
    for table in (spec.hyperparameters, spec.trl_fields):
        with pytest.raises(TypeError, match="item assignment"):
            table["beta"] = None


def test_the_default_is_that_nothing_is_declared():
    @register_loss("plain")
    def plain(responses: RankedResponses) -> Tensor:
        return responses.logps.sum(dim=1)

    spec = get_loss("plain")
    assert spec.listwise
    assert [spec.reference_free, spec.length_normalized, spec.f_divergence, spec.couples_batch] == 4 * [False]
    assert (spec.paper, spec.aliases, spec.needs, dict(spec.hyperparameters)) == (None, (), frozenset(), {})
    assert (spec.statistic, spec.momentum, spec.metrics, spec.beta, dict(spec.trl_fields)) == (
        None,
        None,
        None,
        None,
        {},
    )
    assert (spec.summary, spec.sections) == ("", {})


def test_bounds_of_every_kind():
    @register_loss("bounded")
    def bounded(
        pairs: PreferencePairs,
        *,
        a: Annotated[float, at.Gt(0), at.Lt(1)] = 0.5,
        b: Annotated[int, at.Ge(1), at.Le(3)] = 2,
    ) -> Tensor: ...

    spec = get_loss("bounded")
    for good in ({"a": 0.001, "b": 1}, {"a": 0.999, "b": 3}):
        assert spec.check(good) == good
    for bad, text in (
        ({"a": 0.0}, r"bounded: a=0.0 is out of range, expected > 0, < 1\."),
        ({"a": 1.0}, "a=1.0 is out of range"),
        ({"b": 0}, r"b=0 is out of range, expected >= 1, <= 3\."),
        ({"b": 4}, "b=4 is out of range"),
        ({"b": 1.5}, r"b=1.5 is a float, expected int\."),
        ({"b": True}, r"b=True is a bool, expected int\."),
        ({"a": True}, r"a=True is a bool, expected float\."),
        ({"a": "0.5"}, r"a='0.5' is a str, expected float\."),
        ({"a": None}, r"a=None is a NoneType, expected float\."),
        ({"a": float("inf")}, r"a=inf is not finite\."),
        ({"a": float("nan")}, r"a=nan is not finite\."),
    ):
        with pytest.raises(HyperparameterError, match=text):
            spec.check(bad)


def test_an_integer_is_a_float_but_not_the_other_way_round():
    value = get_loss("dpo").check({"beta": 1})["beta"]
    assert (value, type(value)) == (1.0, float)


def test_a_flag_takes_only_true_and_false():
    @register_loss("flagged")
    def flagged(pairs: PreferencePairs, *, flag: bool = False) -> Tensor: ...

    assert get_loss("flagged").check({"flag": True}) == {"flag": True}
    with pytest.raises(HyperparameterError, match="flag=1 is a int, expected bool"):
        get_loss("flagged").check({"flag": 1})


def test_an_unknown_hyperparameter_names_the_nearest():
    with pytest.raises(
        HyperparameterError, match=r"cdpo has no hyperparameter 'btea'\. Did you mean 'beta'\? It has: beta, l"
    ):
        get_loss("cdpo").check({"btea": 1.0})
    with pytest.raises(HyperparameterError, match=r"mppo has no hyperparameter 'beta'\. It has: none\."):
        get_loss("mppo").check({"beta": 1.0})


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown loss 'minordpo'\. Did you mean 'minor_dpo'"):
        get_loss("minordpo")


def refused(text: str, **facts):
    return pytest.raises(RegistryError, match=rf"loss 'bad' \(.*test_loss_registry.py:\d+\): {text}")


def test_what_the_decorator_refuses():
    def no_annotation(pairs): ...
    def no_parameter(): ...
    def wrong_data(pairs: Tensor) -> Tensor: ...
    def positional(pairs: PreferencePairs, beta: float = 0.1) -> Tensor: ...
    def no_default(pairs: PreferencePairs, *, beta: float) -> Tensor: ...
    def odd_type(pairs: PreferencePairs, *, beta: list = []) -> Tensor: ...  # noqa: B006
    def untyped(pairs: PreferencePairs, *, beta=0.1) -> Tensor: ...
    def union(pairs: PreferencePairs, *, beta: float | str = 0.1) -> Tensor: ...
    def optional_union(pairs: PreferencePairs, *, beta: float | str | None = 0.1) -> Tensor: ...
    def one_kind_of_list(pairs: PreferencePairs, *, beta: list[float] = []) -> Tensor: ...  # noqa: B006
    def anything(pairs: PreferencePairs, **hyperparameters: float) -> Tensor: ...
    def fine(pairs: PreferencePairs, *, beta: float = 0.1) -> Tensor: ...

    with pytest.raises(TypeError, match="positional"):
        register_loss("bad", "1234.56789")
    for fn in (no_annotation, no_parameter, wrong_data):
        with refused(r"annotate the first parameter as PreferencePairs \(pairwise\) or RankedResponses \(listwise\)\."):
            register_loss("bad")(fn)
    with refused(r"'beta' must be keyword-only; put a \* before it\."):
        register_loss("bad")(positional)
    with refused(r"the hyperparameter 'beta' has no default\."):
        register_loss("bad")(no_default)
    with refused(r"'hyperparameters' must be keyword-only"):
        register_loss("bad")(anything)
    for fn in (odd_type, untyped, union, optional_union, one_kind_of_list):
        with refused("the hyperparameter 'beta' is annotated .*; use float, int, bool or str"):
            register_loss("bad")(fn)
    with refused(r"unknown needs \['score'\]; known: scores, ties, token_logps"):
        register_loss("bad", needs=["scores", "score"])(fine)
    with refused(r"trl_fields\['beta'\]='tau' is not one of its hyperparameters\."):
        register_loss("bad", trl_fields={"beta": "tau"})(fine)
    with refused(r"momentum=0.9 needs a statistic and a value in \[0, 1\)\."):
        register_loss("bad", momentum=0.9)(fine)
    for momentum in (1.0, 1.5, -0.1):
        with refused(f"momentum={momentum} needs"):
            register_loss("bad", momentum=momentum, statistic=fine)(fine)
    assert "bad" not in [spec.name for spec in list_losses()]
    register_loss("bad", momentum=0.0, statistic=fine)(fine)
    assert get_loss("bad").momentum == 0.0


def test_a_default_out_of_bounds_is_refused():
    def bad_default(pairs: PreferencePairs, *, beta: Annotated[float, at.Gt(0)] = 0.0) -> Tensor: ...

    with pytest.raises(HyperparameterError, match=r"beta=0.0 is out of range, expected > 0\."):
        register_loss("bad")(bad_default)


def test_the_function_comes_back_unchanged_and_may_register_twice():
    def twice(pairs: PreferencePairs) -> Tensor: ...

    assert register_loss("twice")(twice) is twice
    assert register_loss("twice")(twice) is twice


def test_a_function_defined_again_in_a_notebook_takes_the_place_of_the_first():
    cell = """
from trl_dpo_ext import PreferencePairs, register_loss
@register_loss("notebook")
def {name}(pairs: PreferencePairs, *, beta: float = {beta}):
    return beta * pairs.margins
"""
    for beta in (0.1, 0.2):
        exec(cell.format(name="mine", beta=beta), {"__name__": "__main__"})
    assert get_loss("notebook").check({}) == {"beta": 0.2}
    for name, module in (("other", "__main__"), ("an", "__main__"), ("mine", "elsewhere"), ("mine", "Elsewhere")):
        with pytest.raises(NameCollisionError):
            exec(cell.format(name=name, beta=0.3), {"__name__": module})


def test_only_a_notebook_may_define_a_function_again():
    source = "from trl_dpo_ext import PreferencePairs\ndef mine(pairs: PreferencePairs): ..."
    for module in ("a_module", "A_module"):
        first, second = {"__name__": module}, {"__name__": module}
        exec(source, first)
        exec(source, second)
        register_loss(module)(first["mine"])
        with pytest.raises(NameCollisionError):
            register_loss(module)(second["mine"])


def test_a_taken_name_names_both_places():
    def other(pairs: PreferencePairs) -> Tensor: ...

    for name in ("dpo", "sigmoid"):
        with pytest.raises(
            NameCollisionError, match=rf"name '{name}' is taken: .*dpo.py:\d+ has it, .*test_loss_registry.py:\d+"
        ):
            register_loss(name)(other)
    with pytest.raises(NameCollisionError, match="'hinge' is taken"):
        register_loss("other", aliases=["hinge"])(other)
    assert "other" not in [spec.name for spec in list_losses()]


def test_names_of_trl():
    """Every `loss_type` of TRL 1.16, so that a config moves over unchanged."""
    names = [
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ]  # fmt: skip
    allow_f_divergence = {name for name in names if get_loss(name).f_divergence}
    assert allow_f_divergence == {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
    beta_goes_to = {name: get_loss(name).beta for name in names}
    assert beta_goes_to.pop("ipo") == "tau"
    assert beta_goes_to.pop("sft") is None
    assert set(beta_goes_to.values()) == {"beta"}
    smoothed = {name for name in names if "label_smoothing" in get_loss(name).trl_fields}
    assert smoothed == {"exo_pair", "robust", "aot", "aot_unpaired"}
    assert get_loss("discopop").trl_fields["discopop_tau"] == "tau"
    assert "discopop_tau" not in get_loss("ipo").trl_fields


def test_every_file_of_the_families_registers_a_loss():
    folder = Path(families.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {spec.fn.__module__.rpartition(".")[2] for spec in built_in()} == files


def test_the_fields_of_trl_have_trl_s_defaults():
    defaults = {field.name: field.default for field in dataclasses.fields(DPOConfig)}
    assert dict(TRL_LOSS_FIELDS) == {name: defaults[name] for name in TRL_LOSS_FIELDS}
    assert {field for spec in list_losses() for field in spec.trl_fields} == set(TRL_LOSS_FIELDS)


def test_check_hands_the_loss_what_it_takes():
    value = get_loss("dpo").fn(
        PreferencePairs(*[torch.zeros(2)] * 4, torch.ones(2), torch.ones(2)), **get_loss("dpo").check({})
    )
    assert value.shape == (2,)
