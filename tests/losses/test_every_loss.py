"""What holds for every registered loss: a new one is tested here with no edit."""

import inspect

import pytest

from tests.losses import transcriptions as reference
from trl_dpo_ext import list_losses
from trl_dpo_ext.losses.spec import SECTIONS, LossSpec
from trl_dpo_ext.testing import CHECKS, check_direction

LOSSES = list_losses()

# Losses that may rise when the better response becomes more likely, and why the paper means it so.
TURNS_ROUND = {
    "apo_down": "lowers the chosen response, as data worse than the policy calls for",
    "cal_dpo": "a regression on a target reward",
    "cdpo": "label smoothing puts the optimum at a finite margin",
    "discopop": "has a small hump right of a margin of 0",
    "exo": "matches a distribution that leaves weight to the others",
    "exo_pair": "label smoothing puts the optimum at a finite margin",
    "info_nca": "matches a distribution that leaves weight to the others",
    "ipo": "a regression on a target margin",
    "nca": "tells responses from draws of the reference, so rewards stay finite",
    "nca_pair": "tells responses from draws of the reference, so rewards stay finite",
    "sppo_hard": "a regression on a target reward",
}

every_loss = pytest.mark.parametrize("spec", LOSSES, ids=[spec.name for spec in LOSSES])


@every_loss
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__.removeprefix("check_") for check in CHECKS])
def test_check(spec: LossSpec, check):
    check(spec)


@every_loss
def test_direction(spec: LossSpec):
    if spec.name in TURNS_ROUND:
        with pytest.raises(AssertionError, match="raises the loss"):
            check_direction(spec)
    else:
        check_direction(spec)


@every_loss
def test_docstring_has_its_sections_in_order(spec: LossSpec):
    found = list(spec.sections)
    assert found == [section for section in SECTIONS if section in found], "out of order"
    assert set(SECTIONS) - set(found) <= {"Raises"}
    assert all(spec.sections.values()), "an empty section"
    assert spec.summary.endswith(".")
    for name in spec.hyperparameters:
        assert f"\n{name}:" in spec.sections["Args"], f"{name} isn't explained"
    assert ">>> " in spec.sections["Example"]
    if not spec.reference_free:
        assert "MissingReferenceError" in spec.sections["Raises"]
    if spec.needs or spec.statistic:
        assert "MissingInputError" in spec.sections["Raises"]
    assert "masked" in spec.sections["Returns"] or not spec.listwise, "say what a fully masked row costs"
    assert spec.paper


@every_loss
def test_has_a_reference_with_the_same_defaults(spec: LossSpec):
    table = {**reference.PAIRWISE, **reference.BATCHWISE, **reference.LISTWISE}
    expected = {
        name: parameter.default
        for name, parameter in inspect.signature(table[spec.name]).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name != "running_mean"
    }
    assert {name: h.default for name, h in spec.hyperparameters.items()} == expected


def test_the_reference_has_nothing_else():
    assert {*reference.PAIRWISE, *reference.BATCHWISE, *reference.LISTWISE} == {spec.name for spec in LOSSES}


def test_the_exceptions_exist():
    assert set(TURNS_ROUND) <= {spec.name for spec in LOSSES}
