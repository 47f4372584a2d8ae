"""The checks for plugin authors find faults: each gets a loss that is broken in just one way."""

from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
from annotated_types import Gt

from trl_dpo_ext import PreferencePairs, RankedResponses, get_loss, register_loss
from trl_dpo_ext.registry import UnknownNameError
from trl_dpo_ext.testing import check_loss, temporary_losses
from trl_dpo_ext.types import MissingInputError

P, R = PreferencePairs, RankedResponses


@pytest.fixture(autouse=True)
def _leave_the_registry_as_it_was():
    with temporary_losses():
        yield


def broken(fn, **facts):
    return register_loss("broken", **facts)(fn)


def test_a_correct_loss_passes_by_name_and_by_function():
    @register_loss("fine", f_divergence=True)
    def fine(pairs: P, *, beta: Annotated[float, Gt(0)] = 0.3):
        return -F.logsigmoid(beta * pairs.margins)

    check_loss("fine")
    check_loss(fine)


def test_a_loss_that_isn_t_registered():
    with pytest.raises(ValueError, match=r"is not registered. Put @register_loss"):
        check_loss(lambda pairs: pairs.margins)
    with pytest.raises(UnknownNameError):
        check_loss("nobody_has_this")


def mean(pairs: P):
    return -F.logsigmoid(pairs.margins).mean()


def half_precision(pairs: P):
    return -F.logsigmoid(pairs.margins).half()


def not_finite(pairs: P):
    return -F.logsigmoid(pairs.margins) / 0


def no_gradient(pairs: P):
    return -F.logsigmoid(pairs.margins.detach()) + 0 * pairs.chosen_logps


def straight_through(pairs: P):
    u = pairs.margins
    return -F.logsigmoid(u) + u - u.detach()


def wrong_sign(pairs: P):
    return -F.logsigmoid(-pairs.margins)


def depends_on_place(pairs: P):
    return -F.logsigmoid(pairs.margins * torch.arange(1, len(pairs) + 1))


def first_column_is_best(responses: R):
    s = responses.log_ratios.masked_fill(~responses.mask, -1e3)
    return -s.log_softmax(dim=1)[:, 0] * responses.mask.any(dim=1)


def not_a_difference(pairs: P):
    return -F.logsigmoid(pairs.chosen_log_ratios - 0.7 * pairs.rejected_log_ratios)


def couples_the_batch(pairs: P):
    return -F.logsigmoid(pairs.margins - pairs.margins.mean())


def reads_the_mask_late(responses: R):
    return (-F.logsigmoid(responses.log_ratios) * responses.mask).sum(dim=1)


def counts_masked(responses: R):
    return (-F.logsigmoid(responses.log_ratios.masked_fill(~responses.mask, 0))).sum(dim=1)


def overflows(pairs: P):
    return torch.log(1 + torch.exp(-pairs.margins))


def reference_free_after_all(pairs: P):
    return -F.logsigmoid(pairs.chosen_logps - pairs.rejected_logps)


def looks_at_the_reference(pairs: P):
    reference = 0 if pairs.ref_chosen_logps is None else pairs.ref_chosen_logps
    return -F.logsigmoid(pairs.chosen_logps - pairs.rejected_logps - reference)


def ignores_scores(pairs: P):
    return -F.logsigmoid(pairs.margins)


def wrong_statistic(pairs: P):
    return -F.logsigmoid(pairs.margins - pairs.required("running_mean"))


@pytest.mark.parametrize(
    ("fn", "facts", "message"),
    [
        (mean, {}, r"broken: returns shape \(\) for 18 pairs\. Return one value per pair"),
        (half_precision, {}, r"returns torch.float16 for torch.float32 log-probs"),
        (not_finite, {}, "not finite on ordinary data"),
        (no_gradient, {}, "the policy gets no gradient"),
        (straight_through, {}, "isn't the derivative of the value"),
        (wrong_sign, {}, "raises the loss"),
        (depends_on_place, {}, "the order within the batch matters"),
        (first_column_is_best, {}, "the order of a prompt's responses matters"),
        (not_a_difference, {"f_divergence": True}, "declares f_divergence"),
        (couples_the_batch, {}, "differs from the same prompt alone"),
        (reads_the_mask_late, {}, "in a masked response"),
        (counts_masked, {}, "alone|fully masked"),
        (overflows, {}, r"not finite in torch.float32 for log-probs \["),
        (reference_free_after_all, {}, "Register it with reference_free=True"),
        (looks_at_the_reference, {"reference_free": True}, "NaN reference log-probs change it"),
        (ignores_scores, {"needs": ["scores"]}, "declares 'scores', but doesn't read it"),
        (ignores_scores, {"needs": ["ties"]}, "declares 'ties', but doesn't read it"),
        (ignores_scores, {"statistic": lambda pairs: pairs.margins}, "declares 'statistic'"),
        (wrong_statistic, {"statistic": lambda pairs: pairs.margins.mean()}, "its statistic has shape"),
        (ignores_scores, {"metrics": lambda pairs: {"m": pairs.margins.mean()}}, "its metric 'm' has shape"),
    ],
    ids=lambda x: x.__name__ if callable(x) else None,
)
def test_a_broken_loss_is_found(fn, facts, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(broken(fn, **facts))


def test_an_example_that_is_wrong():
    def wrong_example(pairs: P):
        """One line.

        >>> 1 + 1
        3
        """
        return -F.logsigmoid(pairs.margins)

    with pytest.raises(AssertionError, match="the example in its docstring is wrong"):
        check_loss(broken(wrong_example))


def test_a_bound_that_does_not_hold(monkeypatch):
    hyperparameter = type(get_loss("dpo").hyperparameters["beta"])
    check_loss("dpo")
    monkeypatch.setattr(hyperparameter, "check", lambda self, value, loss: value)
    with pytest.raises(AssertionError, match=r"dpo: beta=\[\] is accepted"):
        check_loss("dpo")


def test_a_loss_may_turn_round_where_it_means_to():
    with pytest.raises(AssertionError, match=r"check_loss\(\.\.\., monotone=False\)"):
        check_loss("ipo")
    check_loss("ipo", monotone=False)


def test_an_undeclared_input_is_not_there():
    @register_loss("broken")
    def reads_scores(pairs: P):
        return -F.logsigmoid(pairs.margins * pairs.score_margins)

    with pytest.raises(MissingInputError, match=r"scores, but got none\. Declare the need in register_loss"):
        check_loss(reads_scores)


def test_token_level_losses_are_checked_too():
    @register_loss("token_dpo", needs=["token_logps"])
    def token_dpo(pairs: P):
        chosen = pairs.required("chosen_token_logps").sum(dim=1) - pairs.required("ref_chosen_token_logps").sum(dim=1)
        return -F.logsigmoid(chosen - pairs.rejected_log_ratios)

    check_loss(token_dpo)
