"""What single pairwise losses promise beyond their value: gradients at kinks, caps, guards, errors."""

import itertools
import math

import pytest
import torch

from trl_dpo_ext import PreferencePairs, get_loss
from trl_dpo_ext.types import MissingReferenceError


def pair(chosen: float, rejected: float, *, reference: float = 0.0, length: int = 1, dtype=torch.float64, **fields):
    """One pair with the given summed log-probs; the gradient goes to them."""
    logps = [torch.tensor([x], dtype=dtype, requires_grad=True) for x in (chosen, rejected)]
    refs = [torch.tensor([reference], dtype=dtype)] * 2
    lengths = torch.tensor([length])
    return PreferencePairs(*logps, *refs, lengths, lengths, **fields)


def slopes(name: str, pairs: PreferencePairs, **hyperparameters) -> list[float]:
    spec = get_loss(name)
    value = spec.fn(pairs, **spec.check(hyperparameters))
    grads = torch.autograd.grad(value.sum(), [pairs.chosen_logps, pairs.rejected_logps], materialize_grads=True)
    return [g.item() for g in grads]


def test_minor_dpo_takes_a_full_dpo_step_where_policy_and_reference_agree():
    assert slopes("minor_dpo", pair(0.0, 0.0)) == slopes("dpo", pair(0.0, 0.0)) == [-0.05, 0.05]


def test_minor_dpo_leaves_a_rejected_response_below_the_reference_alone():
    assert slopes("minor_dpo", pair(0.0, -1e-6)) == [-0.05, 0.0]
    assert slopes("minor_dpo", pair(0.0, 1e-6))[1] > 0


def test_minor_dpo_counts_clipped_pairs():
    spec = get_loss("minor_dpo")
    logps = torch.tensor([-1.0, 0.0, 1.0])
    zero, one = torch.zeros(3), torch.ones(3)
    clipped = spec.metrics(PreferencePairs(zero, logps, zero, zero, one, one), **spec.check({}))
    assert {name: values.tolist() for name, values in clipped.items()} == {"clipped": [1.0, 0.0, 0.0]}


def test_balanced_po_splits_the_gradient_where_policy_and_reference_agree():
    assert slopes("balanced_po", pair(0.0, 0.0), alpha=1.0) == [-0.025, 0.025]


@pytest.mark.parametrize("length", [1, 7])
def test_orpo_at_probability_one_stays_finite(length):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for chosen, rejected in ((0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-30, -1e-30), (0.0, -1e4)):
            data = pair(chosen, rejected, length=length, dtype=dtype)
            value = get_loss("orpo").fn(data)
            assert value.isfinite().all()
            assert all(math.isfinite(x) for x in slopes("orpo", data))


def test_orpo_just_below_probability_one_is_exact():
    """log(1 - p) by expm1: 1 - p would have no digit left."""
    value = get_loss("orpo").fn(pair(-1e-12, -1.0), lam=1.0).item()
    odds_chosen, odds_rejected = 1e12, 1 / (math.e - 1)
    assert value == pytest.approx(1e-12 + odds_rejected / odds_chosen, rel=1e-9)


def test_chi_po_clips_at_twice_r_max():
    fn = get_loss("chi_po").fn
    assert fn(pair(50.0, 0.0), r_max=1.5).item() == pytest.approx(math.log1p(math.exp(-3)), rel=1e-12)
    assert fn(pair(0.0, 50.0), r_max=1.5).item() == pytest.approx(math.log1p(math.exp(3)), rel=1e-12)
    assert slopes("chi_po", pair(0.0, 50.0)) == [0.0, 0.0]


def test_chi_po_caps_the_exponent_only_far_out():
    value = get_loss("chi_po").fn(pair(79.0, 80.0), beta=1e-36, r_max=1e3).item()
    expected = 1e-36 * (math.exp(79) - math.exp(80))
    assert value == pytest.approx(math.log1p(math.exp(-expected)), rel=1e-12)
    assert get_loss("chi_po").fn(pair(200.0, 0.0, dtype=torch.float32), beta=1e-34, r_max=1e9).item() == pytest.approx(
        math.log1p(math.exp(-1e-34 * math.exp(80))), rel=1e-5
    )


def test_alphapo_caps_the_exponent_only_far_out():
    def expected(exponent: float) -> float:
        return 1e-34 * (math.exp(exponent) - 1)  # beta (R_w - R_l) with R_w = 0, alpha = 1

    for mean, exponent in ((-79.0, 79.0), (-80.0, 80.0), (-200.0, 80.0)):
        value = get_loss("alphapo").fn(pair(0.0, mean), alpha=1.0, beta=1e-34, gamma=0.0).item()
        assert value == pytest.approx(math.log1p(math.exp(-expected(exponent))), rel=1e-12)


def test_discopop_has_no_nan_where_the_exponential_overflows():
    data = pair(-1e4, 0.0, dtype=torch.float32)
    assert get_loss("discopop").fn(data).item() == pytest.approx(0.1 * 1e4)
    assert slopes("discopop", data) == pytest.approx([-0.1, 0.1])


def test_odpo_names_a_pair_whose_scores_are_not_apart():
    zero, one = torch.zeros(3), torch.ones(3)
    for gap, last in itertools.product((0.0, -0.5, math.nan), (1.0, -9.0)):  # the only such pair; the first of two
        scores = torch.tensor([1.0, gap, last])
        pairs = PreferencePairs(zero, zero, zero, zero, one, one, chosen_scores=scores, rejected_scores=zero)
        with pytest.raises(ValueError, match=f"pair 1 .* of {gap:g};"):
            get_loss("odpo").fn(pairs)


@pytest.mark.parametrize("name", ["dpo_rk", "dpo_davidson"])
@pytest.mark.parametrize("margin", [-3.0, 0.0, 1.3])
def test_win_tie_and_loss_have_probability_one_together(name, margin):
    fn = get_loss(name).fn
    one = torch.ones(3)
    logps = torch.tensor([margin, -margin, margin], dtype=torch.float64)
    pairs = PreferencePairs(
        logps, torch.zeros_like(logps), 0 * logps, 0 * logps, one, one, ties=torch.tensor([False, False, True])
    )
    assert (-fn(pairs, beta=1.0, nu=1.7)).exp().sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("missing", ["ref_chosen_logps", "ref_rejected_logps"])
def test_aot_needs_both_references(missing):
    with pytest.raises(MissingReferenceError, match="aot sorts the reference's log-prob differences"):
        get_loss("aot").fn(pair(1.0, -1.0).replace(**{missing: None}))


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_gives_each_pair_its_own_loss(name):
    """Entry i belongs to pair i: it rises and falls with what pair i is, wherever the sort puts it."""
    chosen = torch.tensor([5.0, -3.0, 1.0], dtype=torch.float64)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3)
    value = get_loss(name).fn(PreferencePairs(chosen, zero, zero, zero, one, one), beta=1.0)
    torch.testing.assert_close(value, torch.log1p(torch.exp(-chosen)))


def test_running_statistics_get_no_gradient():
    mean = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    for name in ("bco", "beta_dpo"):
        value = get_loss(name).fn(pair(1.0, -1.0, batch_mean=mean, running_mean=mean.detach() / 2))
        assert torch.autograd.grad(value.sum(), mean, allow_unused=True) == (None,)
        value = get_loss(name).fn(pair(1.0, -1.0, batch_mean=mean.detach(), running_mean=mean))
        assert torch.autograd.grad(value.sum(), mean, allow_unused=True) == (None,)


def test_an_empty_response_counts_as_one_token():
    zero_length = torch.tensor([0])
    one_length = torch.tensor([1])
    for name in ("ipo", "ln_dpo", "simpo", "cpo"):
        data = pair(-2.0, -1.0)
        empty = data.replace(chosen_lengths=zero_length, rejected_lengths=zero_length)
        assert get_loss(name).fn(empty).item() == get_loss(name).fn(data.replace(chosen_lengths=one_length)).item()


def test_a_batch_without_pairs_gives_no_loss():
    nothing = torch.zeros(0)
    for name in ("dpo", "aot", "aot_unpaired", "odpo"):
        pairs = PreferencePairs(*[nothing] * 6, chosen_scores=nothing, rejected_scores=nothing)
        assert get_loss(name).fn(pairs).shape == (0,)
