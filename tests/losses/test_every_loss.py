"""What every registered loss must satisfy. A new loss is tested here without an edit."""

import contextlib
import inspect

import pytest
import torch

from tests.losses import transcriptions
from trl_dpo_ext import RankedResponses, list_losses
from trl_dpo_ext.losses import HyperparameterError
from trl_dpo_ext.losses.loss_spec import SECTIONS, LossSpec
from trl_dpo_ext.testing import CHECKS, check_direction, loss_input, random_rankings

LOSSES = list_losses()

TRANSCRIPTIONS = {**transcriptions.PAIRWISE, **transcriptions.BATCHWISE, **transcriptions.LISTWISE}


def each(specs: list[LossSpec]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", specs, ids=[spec.name for spec in specs])


every_loss = each(LOSSES)


@every_loss
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__.removeprefix("check_") for check in CHECKS])
def test_check(spec: LossSpec, check):
    check(spec)


@every_loss
def test_direction(spec: LossSpec):
    if spec.name in transcriptions.TURNS_ROUND:
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
def test_has_a_transcription_with_the_same_defaults(spec: LossSpec):
    assert spec.name in TRANSCRIPTIONS, (
        f"The loss {spec.name!r} has no transcription. Write {spec.name}(...) in tests/losses/transcriptions.py: the "
        "paper's formula in plain Python, with the same keyword arguments and defaults, under @pairwise, @batchwise or "
        "@listwise. If the paper means it to rise when the better response becomes more likely, say why: "
        '@pairwise(turns_round="...").'
    )
    expected = {
        name: parameter.default
        for name, parameter in inspect.signature(TRANSCRIPTIONS[spec.name]).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name != "running_mean"
    }
    assert {name: h.default for name, h in spec.hyperparameters.items()} == expected


def test_there_is_no_transcription_of_anything_else():
    assert set(TRANSCRIPTIONS) <= {spec.name for spec in LOSSES}


# --- declared facts that the checks of `trl_dpo_ext.testing` can't require of a plugin's loss ----------------------


def at_zero(spec: LossSpec) -> dict[str, float]:
    """Every hyperparameter at 0 where its bounds allow it: terms with a weight of their own drop out."""
    values = {}
    for name, hyperparameter in spec.hyperparameters.items():
        with contextlib.suppress(HyperparameterError):
            values[name] = hyperparameter.check(0.0, spec.name)
    return spec.check(values)


def scaled(responses: RankedResponses, factors: torch.Tensor) -> RankedResponses:
    """Every response `factors` times as long, with the same log-probs per token."""
    return responses.replace(
        logps=responses.logps * factors, ref_logps=responses.ref_logps * factors, lengths=responses.lengths * factors
    )


@every_loss
def test_length_normalized_is_declared_where_only_means_per_token_count(spec: LossSpec):
    responses = random_rankings(seed=12)
    factors = torch.arange(1, 13).reshape(3, 4)
    first, second = loss_input(spec, responses), loss_input(spec, scaled(responses, factors))
    unchanged = any(torch.allclose(spec.fn(first, **h), spec.fn(second, **h)) for h in (spec.check({}), at_zero(spec)))
    assert spec.length_normalized == unchanged


@each([spec for spec in LOSSES if not (spec.reference_free or spec.length_normalized or spec.couples_batch)])
def test_f_divergence_is_declared_where_only_differences_of_log_ratios_count(spec: LossSpec):
    responses = random_rankings(seed=13)
    first = loss_input(spec, responses)
    second = loss_input(spec, responses.replace(logps=responses.logps + torch.tensor([[0.5], [-3.0], [7.0]])))
    assert spec.f_divergence == torch.allclose(spec.fn(first, **spec.check({})), spec.fn(second, **spec.check({})))


@every_loss
def test_couples_batch_is_declared_where_pairs_depend_on_each_other(spec: LossSpec):
    responses = random_rankings(seed=14, prompts=5)
    alone = responses.replace(**{n: v[:1] for n, v in vars(responses).items() if isinstance(v, torch.Tensor)})
    first, second = loss_input(spec, responses), loss_input(spec, alone)
    values, expected = (spec.fn(data, **spec.check({})) for data in (first, second))
    assert spec.couples_batch or torch.allclose(values[: len(expected)], expected) or spec.statistic is not None
    if spec.couples_batch:
        assert not torch.allclose(values[: len(expected)], expected)


def test_the_exceptions_exist():
    assert set(transcriptions.TURNS_ROUND) <= {spec.name for spec in LOSSES}
