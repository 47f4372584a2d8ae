"""How the losses relate to each other: each line under "Relations" in a docstring has its test here."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trl_dpo_ext import PreferencePairs, RankedResponses, get_loss, list_losses
from trl_dpo_ext.testing import random_rankings

RELATIONS: dict[tuple[str, str], Callable[[], None]] = {}


def relation(loss: str, statement: str):
    """Mark the test of one line under "Relations" in a loss's docstring."""

    def keep(test: Callable[[], None]) -> Callable[[], None]:
        assert (loss, statement) not in RELATIONS
        RELATIONS[loss, statement] = test
        return test

    return keep


# --- data ----------------------------------------------------------------------------------------------------------


def rankings(responses: int = 4, **changes) -> RankedResponses:
    """Rankings with margins of some nats, so that a factor on them shows."""
    data = random_rankings(seed=20, prompts=5, responses=responses)
    return data.replace(logps=3 * data.logps, ref_logps=3 * data.ref_logps, **changes)


def pairs(**changes) -> PreferencePairs:
    return rankings().pairs().replace(**changes)


def one_token(data):
    names = [name for name in vars(data) if name.endswith("lengths")]
    return data.replace(**{name: torch.ones_like(getattr(data, name)) for name in names})


def uniform_reference(data, logp: float = -7.0):
    names = [n for n in vars(data) if n in ("ref_logps", "ref_chosen_logps", "ref_rejected_logps")]
    return data.replace(**{name: torch.full_like(getattr(data, name), logp) for name in names})


def with_log_ratios(data: PreferencePairs, chosen: Tensor, rejected: Tensor) -> PreferencePairs:
    return data.replace(chosen_logps=data.ref_chosen_logps + chosen, rejected_logps=data.ref_rejected_logps + rejected)


def loss(name: str, data, **hyperparameters) -> Tensor:
    spec = get_loss(name)
    return spec.fn(data, **spec.check(hyperparameters))


def same(got: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    assert got.std() > 0 or got.numel() == 1, "the same value everywhere compares nothing"
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-12)


def gradients(name: str, data: PreferencePairs, **hyperparameters) -> tuple[Tensor, ...]:
    leaves = [data.chosen_logps.clone().requires_grad_(), data.rejected_logps.clone().requires_grad_()]
    value = loss(name, data.replace(chosen_logps=leaves[0], rejected_logps=leaves[1]), **hyperparameters)
    return torch.autograd.grad(value.sum(), leaves)


def same_gradients(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def one_hot_scores(data: RankedResponses) -> RankedResponses:
    """Scores whose softmax is 1 at the best response, to float64."""
    return data.replace(scores=torch.where(data.ranks == 0, 1e4, 0.0).double())


# --- variants of dpo -----------------------------------------------------------------------------------------------


@relation("dpo", "`plackett_luce` at K = 2, to the last bit of float32.")
@relation("plackett_luce", "`dpo` at K = 2, to the last bit of float32.")
def _():
    ranked = random_rankings(seed=21, prompts=4000, responses=2, dtype=torch.float32)
    for scale in (1e-3, 1.0, 30.0, 1e3, 1e5):
        data = ranked.replace(logps=ranked.logps * scale, ref_logps=ranked.ref_logps * scale)
        for beta in (0.05, 0.1, 1.0, 7.3):
            listwise, pairwise = loss("plackett_luce", data, beta=beta), loss("dpo", data.pairs(), beta=beta)
            assert listwise.dtype == torch.float32
            assert torch.equal(listwise, pairwise), f"scale {scale}, beta {beta}"


@relation("cdpo", "`dpo` at label_smoothing = 0.")
def _():
    same(loss("cdpo", pairs(), beta=0.3, label_smoothing=0.0), loss("dpo", pairs(), beta=0.3))


@relation("robust", "`dpo` at label_smoothing = 0.")
def _():
    same(loss("robust", pairs(), beta=0.3, label_smoothing=0.0), loss("dpo", pairs(), beta=0.3))


@relation("ln_dpo", "`dpo` where every response has one token.")
def _():
    same(loss("ln_dpo", one_token(pairs()), beta=0.3), loss("dpo", pairs(), beta=0.3))


@relation("r_dpo", "`dpo` at alpha = 0.")
def _():
    same(loss("r_dpo", pairs(), beta=0.3, alpha=0.0), loss("dpo", pairs(), beta=0.3))


@relation("r_dpo", "`dpo` where both responses have the same length.")
def _():
    data = pairs()
    same(loss("r_dpo", data.replace(rejected_lengths=data.chosen_lengths), beta=0.3), loss("dpo", data, beta=0.3))


def one_of_each(**changes) -> RankedResponses:
    """Prompts with one desirable and one undesirable response."""
    data = rankings(responses=2)
    return data.replace(labels=torch.where(data.ranks == 0, 1, -1).to(torch.int8), **changes)


@relation("kto", "`apo_zero_unpaired` where z0 is 0.")
def _():
    data = one_of_each(mismatched_logps=torch.full((5,), -3.0).double(), ref_mismatched_logps=torch.zeros(5).double())
    values = {"beta": 0.3, "lambda_d": 1.4, "lambda_u": 0.6}
    same(loss("kto", data, **values), loss("apo_zero_unpaired", data, **values))


@relation("apo_zero_unpaired", "`apo_zero` times one half, for one desirable and one undesirable response.")
def _():
    data = one_of_each()
    same(loss("apo_zero_unpaired", data, beta=0.3), loss("apo_zero", data.pairs(), beta=0.3) / 2)


@relation(
    "bco_unpaired",
    "`bco` times one half, for one desirable and one undesirable response and equal running means.",
)
def _():
    data = one_of_each(running_mean=torch.tensor(0.4).double(), prompt_weights=None)
    same(loss("bco_unpaired", data, beta=0.3), loss("bco", data.pairs(), beta=0.3) / 2)


@relation("qrpo", "`qrpo_group` where the reference's scores are those of the other responses.")
@relation("qrpo_group", "`qrpo` where the reference's scores are those of the other responses.")
def _():
    data = rankings(responses=3)
    for k in range(3):
        others = [j for j in range(3) if j != k]
        alone = data.replace(
            mask=torch.arange(3).expand(5, 3) == k,
            reference_scores=data.scores[:, others],
            reference_scores_mask=torch.ones(5, 2) > 0,
        )
        errors = loss("qrpo", alone, beta=0.3)
        leaves = data.logps.clone().requires_grad_()
        # The share of response k in the group's mean: the mean over three, in which only k depends on its log-prob.
        (got,) = torch.autograd.grad(loss("qrpo_group", data.replace(logps=leaves), beta=0.3).sum(), leaves)
        leaf = data.logps.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss("qrpo", alone.replace(logps=leaf), beta=0.3).sum() / 3, leaf)
        torch.testing.assert_close(got[:, k], expected[:, k], rtol=1e-10, atol=1e-12)
        assert errors.std() > 0


@relation("rebel", "`reward_aware_po_squared` at beta = 1.")
@relation("reward_aware_po_squared", "`rebel` at beta = 1.")
def _():
    same(loss("rebel", pairs(), eta=0.6), loss("reward_aware_po_squared", pairs(), beta=1.0, eta=0.6))


@relation("reward_aware_po", "`dpo` where the scores are far apart.")
def _():
    data = pairs()
    data = data.replace(chosen_scores=data.rejected_scores + 1e3)
    same(loss("reward_aware_po", data, beta=0.3), loss("dpo", data, beta=0.3))


def equally_far_apart(difference: float) -> PreferencePairs:
    data = pairs()
    return data.replace(chosen_scores=data.rejected_scores + difference)


@relation(
    "reward_aware_po",
    "The gradient of `cdpo` with label_smoothing = sigmoid(-eta (r_w - r_l)), where all pairs are equally far apart.",
)
def _():
    data, smoothing = equally_far_apart(2.0), 1 / (1 + math.exp(0.7 * 2.0))
    same_gradients(
        gradients("reward_aware_po", data, beta=0.3, eta=0.7),
        gradients("cdpo", data, beta=0.3, label_smoothing=smoothing),
    )


@relation(
    "reward_aware_po_forward_kl",
    "`exo_pair` with label_smoothing = sigmoid(-eta (r_w - r_l)), where all pairs are equally far apart.",
)
def _():
    data, smoothing = equally_far_apart(2.0), 1 / (1 + math.exp(0.7 * 2.0))
    same(
        loss("reward_aware_po_forward_kl", data, beta=0.3, eta=0.7),
        loss("exo_pair", data, beta=0.3, label_smoothing=smoothing),
    )


@relation(
    "simper", "The gradient of `unlikelihood` at alpha = 1 times p, for responses of one token, both of probability p."
)
def _():
    data = one_token(pairs())
    data = data.replace(chosen_logps=data.rejected_logps)
    probability = data.rejected_logps.exp()
    same_gradients(
        gradients("simper", data), tuple(g * probability for g in gradients("unlikelihood", data, alpha=1.0))
    )


@relation("odpo", "`dpo` at alpha = 0.")
def _():
    same(loss("odpo", pairs(), beta=0.3, alpha=0.0), loss("dpo", pairs(), beta=0.3))


@relation("odpo", "`dpo` where the scores differ by 1.")
def _():
    data = pairs()
    data = data.replace(chosen_scores=data.rejected_scores + 1)
    same(loss("odpo", data, beta=0.3), loss("dpo", data, beta=0.3), rtol=1e-9)


@relation("discopop", "`dpo` where u is below zero by many tau.")
def _():
    data = pairs()
    wrong = with_log_ratios(data, -1 - data.margins.abs(), torch.zeros_like(data.margins))
    same(loss("discopop", wrong, beta=0.3, tau=0.01), loss("dpo", wrong, beta=0.3))


@relation("chi_po", "`dpo` with twice the beta, in the gradient where policy and reference agree.")
def _():
    data = pairs()
    equal = with_log_ratios(data, torch.zeros(len(data)), torch.zeros(len(data)))
    same_gradients(gradients("chi_po", equal, beta=0.3), gradients("dpo", equal, beta=0.6))


# --- losses against displacement -----------------------------------------------------------------------------------


@relation("minor_dpo", "`dpo` where D_l >= 0.")
def _():
    data = pairs()
    risen = with_log_ratios(data, data.chosen_log_ratios, data.rejected_log_ratios.abs())
    same(loss("minor_dpo", risen, beta=0.3), loss("dpo", risen, beta=0.3))
    same_gradients(gradients("minor_dpo", risen), gradients("dpo", risen))
    start = with_log_ratios(data, torch.zeros(len(data)), torch.zeros(len(data)))
    assert (start.rejected_log_ratios == 0).all()
    same_gradients(gradients("minor_dpo", start), gradients("dpo", start))
    fallen = with_log_ratios(data, data.chosen_log_ratios, -0.1 - data.rejected_log_ratios.abs())
    assert gradients("minor_dpo", fallen)[1].count_nonzero() == 0


@relation("bounded_dpo", "`dpo` as lam goes to 1.")
def _():
    same(loss("bounded_dpo", pairs(), beta=0.3, lam=1 - 1e-14), loss("dpo", pairs(), beta=0.3), rtol=1e-8)


@relation("dpop", "`dpo` at lam = 0.")
def _():
    same(loss("dpop", pairs(), beta=0.3, lam=0.0), loss("dpo", pairs(), beta=0.3))


@relation("dpop", "`dpo` where D_w >= 0.")
def _():
    data = pairs()
    risen = with_log_ratios(data, data.chosen_log_ratios.abs(), data.rejected_log_ratios)
    same(loss("dpop", risen, beta=0.3), loss("dpo", risen, beta=0.3))
    start = with_log_ratios(data, torch.zeros(len(data)), torch.zeros(len(data)))
    same_gradients(gradients("dpop", start), gradients("dpo", start))


@relation("dpo_shift", "`dpo` at lam = 1.")
def _():
    same(loss("dpo_shift", pairs(), beta=0.3, lam=1.0), loss("dpo", pairs(), beta=0.3))


@relation("balanced_po", "`dpo` with half the beta at alpha = 1, where D_l = -D_w.")
def _():
    data = pairs()
    balanced = with_log_ratios(data, data.margins, -data.margins)
    same(loss("balanced_po", balanced, beta=0.6, alpha=1.0), loss("dpo", balanced, beta=0.3))


@relation("cal_dpo", "`dpo` at beta = 1, plus half of `sppo_hard`.")
def _():
    half = loss("sppo_hard", pairs(), beta=0.3) / 2
    same(loss("cal_dpo", pairs(), beta=0.3), loss("dpo", pairs(), beta=1.0) + half)


@relation("sppo_hard", "`cal_dpo` minus `dpo` at beta = 1, times two.")
def _():
    half = loss("cal_dpo", pairs(), beta=0.3) - loss("dpo", pairs(), beta=1.0)
    same(loss("sppo_hard", pairs(), beta=0.3), 2 * half)


# --- other functions of the pair -----------------------------------------------------------------------------------


@relation(
    "hinge",
    "`slic` at delta = 1, lam = 0, for beta = 1 and a reference that gives every response the same probability.",
)
@relation(
    "slic",
    "`hinge` with beta = 1 and a reference that gives every response the same probability, at delta = 1, lam = 0.",
)
def _():
    data = uniform_reference(pairs())
    same(loss("hinge", data, beta=1.0), loss("slic", data, delta=1.0, lam=0.0))


@relation(
    "ipo", "`sppo_hard` minus its constant 1 / (2 beta)^2 at beta = tau, where D_l = 0 and responses have one token."
)
def _():
    data = one_token(pairs())
    data = data.replace(rejected_logps=data.ref_rejected_logps)
    same(loss("ipo", data, tau=0.3), loss("sppo_hard", data, beta=0.3) - (1 / 0.6) ** 2, rtol=1e-9)


@relation("exo_pair", "`exo` at K = 2, with scores whose softmax is (1 - label_smoothing, label_smoothing).")
@relation("exo", "`exo_pair` at K = 2, for scores whose softmax is (1 - label_smoothing, label_smoothing).")
def _():
    data = rankings(2)
    scores = torch.where(data.ranks == 0, math.log(0.8), math.log(0.2)).double()
    same(
        loss("exo", data.replace(scores=0.7 * scores), beta=0.3, beta_r=0.7),
        loss("exo_pair", data.pairs(), beta=0.3, label_smoothing=0.2),
        rtol=1e-6,
    )


@relation("nca_pair", "`nca` at K = 2, where the scores put all weight on the chosen response.")
@relation("nca", "`nca_pair` at K = 2, where the scores put all weight on the chosen response.")
def _():
    data = rankings(2)
    same(loss("nca", one_hot_scores(data), beta=0.3), loss("nca_pair", data.pairs(), beta=0.3))


@relation("bco_pair", "`bco` where the running mean of the rewards is 0.")
@relation("bco", "`bco_pair` where the running mean of the rewards is 0.")
def _():
    data = pairs(running_mean=torch.tensor(0.0, dtype=torch.float64))
    same(loss("bco", data, beta=0.3), loss("bco_pair", data, beta=0.3))


@relation("bco_pair", "`dpo` is never above it.")
def _():
    assert (loss("dpo", pairs(), beta=0.3) < loss("bco_pair", pairs(), beta=0.3)).all()


@relation("apo_zero", "`apo_zero` of the pair the other way round adds up with it to 2.")
def _():
    data = pairs()
    turned = with_log_ratios(data, data.rejected_log_ratios, data.chosen_log_ratios)
    same(loss("apo_zero", data, beta=0.3), 2 - loss("apo_zero", turned, beta=0.3))


@relation("apo_down", "`apo_zero` where D_w = 0.")
def _():
    data = pairs()
    data = data.replace(chosen_logps=data.ref_chosen_logps)
    same(loss("apo_down", data, beta=0.3), loss("apo_zero", data, beta=0.3))


# --- losses that couple the batch ----------------------------------------------------------------------------------


def each_alone(name: str, data: PreferencePairs, **hyperparameters) -> Tensor:
    fields = {n: v for n, v in vars(data).items() if isinstance(v, Tensor)}
    alone = [data.replace(**{n: v[i : i + 1] for n, v in fields.items()}) for i in range(len(data))]
    return torch.cat([loss(name, pair, **hyperparameters) for pair in alone])


@relation("aot", "`dpo` for a batch of one pair.")
def _():
    same(each_alone("aot", pairs(), beta=0.3), loss("dpo", pairs(), beta=0.3))


@relation("aot", "`cdpo` for a batch of one pair, with the same label_smoothing.")
def _():
    same(
        each_alone("aot", pairs(), beta=0.3, label_smoothing=0.2), loss("cdpo", pairs(), beta=0.3, label_smoothing=0.2)
    )


@relation("aot_unpaired", "`dpo` for a batch of one pair.")
def _():
    same(each_alone("aot_unpaired", pairs(), beta=0.3), loss("dpo", pairs(), beta=0.3))


@relation("aot_unpaired", "`cdpo` for a batch of one pair, with the same label_smoothing.")
def _():
    alone = each_alone("aot_unpaired", pairs(), beta=0.3, label_smoothing=0.2)
    same(alone, loss("cdpo", pairs(), beta=0.3, label_smoothing=0.2))


@relation("beta_dpo", "`dpo` at alpha = 0.")
def _():
    data = pairs(batch_mean=torch.tensor(5.0, dtype=torch.float64), running_mean=torch.tensor(1.0, dtype=torch.float64))
    same(loss("beta_dpo", data, beta=0.3, alpha=0.0), loss("dpo", data, beta=0.3))


@relation("beta_dpo", "`dpo` where the batch's mean margin equals the running mean.")
def _():
    data = pairs(batch_mean=torch.tensor(5.0, dtype=torch.float64), running_mean=torch.tensor(5.0, dtype=torch.float64))
    same(loss("beta_dpo", data, beta=0.3), loss("dpo", data, beta=0.3))


# --- ties ----------------------------------------------------------------------------------------------------------


@relation("dpo_rk", "`dpo` as nu goes to 1, where no pair is a tie.")
def _():
    data = rankings().pairs(ties=True)
    assert not data.ties.any()
    same(loss("dpo_rk", data, beta=0.3, nu=1 + 1e-14), loss("dpo", data, beta=0.3))


@relation("dpo_davidson", "`dpo` as nu goes to 0, where no pair is a tie.")
def _():
    data = rankings().pairs(ties=True)
    same(loss("dpo_davidson", data, beta=0.3, nu=1e-14), loss("dpo", data, beta=0.3), rtol=1e-9)


# --- reference-free pairs ------------------------------------------------------------------------------------------


@relation("reference_free_dpo", "`dpo` with a reference that gives every response the same probability.")
def _():
    same(loss("reference_free_dpo", pairs(), beta=0.3), loss("dpo", uniform_reference(pairs()), beta=0.3))


@relation("simpo", "`reference_free_dpo` at gamma_beta_ratio = 0, where every response has one token.")
def _():
    data = one_token(pairs())
    same(loss("simpo", data, beta=0.3, gamma_beta_ratio=0.0), loss("reference_free_dpo", data, beta=0.3))


@relation("alphapo", "`simpo` as alpha goes to 0, with gamma_beta_ratio = gamma / beta.")
def _():
    expected = loss("simpo", pairs(), beta=2.0, gamma_beta_ratio=0.35)
    for alpha in (1e-10, -1e-10, 0.0):
        same(loss("alphapo", pairs(), beta=2.0, gamma=0.7, alpha=alpha), expected, rtol=1e-7)


@relation("cpo", "`reference_free_dpo` at alpha = 0.")
def _():
    same(loss("cpo", pairs(), beta=0.3, alpha=0.0), loss("reference_free_dpo", pairs(), beta=0.3))


@relation("cpo_simpo", "`simpo` at alpha = 0, with gamma_beta_ratio = gamma / beta.")
def _():
    expected = loss("simpo", pairs(), beta=2.0, gamma_beta_ratio=0.35)
    same(loss("cpo_simpo", pairs(), beta=2.0, gamma=0.7, alpha=0.0), expected)


def sft_of_each_prompt(data: RankedResponses) -> Tensor:
    return torch.cat([loss("sft", of_prompt(data, b)) for b in range(len(data))])


def of_prompt(data: RankedResponses, row: int) -> RankedResponses:
    return data.replace(**{n: v[row : row + 1] for n, v in vars(data).items() if isinstance(v, Tensor)})


@relation("orpo", "`sft` at lam = 0, for a batch of one prompt.")
@relation("sft", "`orpo` at lam = 0, for a batch of one prompt.")
def _():
    data = rankings(2)
    same(loss("orpo", data.pairs(), lam=0.0), sft_of_each_prompt(data))


@relation("unlikelihood", "`sft` at alpha = 0, for a batch of one prompt and a chosen response of one token.")
def _():
    data = one_token(rankings(2))
    same(loss("unlikelihood", data.pairs(), alpha=0.0), sft_of_each_prompt(data))


# --- rankings ------------------------------------------------------------------------------------------------------


@relation("softmax_dpo", "`plackett_luce` at top_k = 1.")
def _():
    same(loss("softmax_dpo", rankings(), beta=0.3), loss("plackett_luce", rankings(), beta=0.3, top_k=1))


@relation("softmax_dpo", "`dpo` at K = 2.")
def _():
    same(loss("softmax_dpo", rankings(2), beta=0.3), loss("dpo", rankings(2).pairs(), beta=0.3))


def summed_over_pairs(values: Tensor, data: PreferencePairs) -> Tensor:
    return torch.zeros(5, dtype=values.dtype).index_add(0, data.prompts, values)


@relation("rank_net", "`dpo` summed over all pairs of a ranking.")
def _():
    data = rankings().pairs("all")
    same(loss("rank_net", rankings(), beta=0.3), summed_over_pairs(loss("dpo", data, beta=0.3), data))


@relation("lipo_lambda", "`dpo` at K = 2, times the weight of the pair.")
def _():
    data = rankings(2)
    scores = data.pairs()
    weight = (2**scores.chosen_scores - 2**scores.rejected_scores) * (1 / math.log(2) - 1 / math.log(3))
    same(loss("lipo_lambda", data, beta=0.3), weight * loss("dpo", data.pairs(), beta=0.3))


@relation("info_nca", "`dpo` at K = 2, where the scores put all weight on the chosen response.")
def _():
    data = rankings(2)
    same(loss("info_nca", one_hot_scores(data), beta=0.3), loss("dpo", data.pairs(), beta=0.3))


@relation("info_nca", "`softmax_dpo` where the scores put all weight on the best response.")
def _():
    same(loss("info_nca", one_hot_scores(rankings()), beta=0.3), loss("softmax_dpo", rankings(), beta=0.3))


@relation("reference_free_plackett_luce", "`simpo` at gamma_beta_ratio = 0, for K = 2.")
def _():
    expected = loss("simpo", rankings(2).pairs(), beta=0.3, gamma_beta_ratio=0.0)
    same(loss("reference_free_plackett_luce", rankings(2), beta=0.3), expected)


@relation(
    "reference_free_plackett_luce",
    "`plackett_luce` where every response has one token and the same probability under the reference.",
)
def _():
    data = one_token(uniform_reference(rankings()))
    for top_k in (None, 2):
        expected = loss("plackett_luce", data, beta=0.3, top_k=top_k)
        same(loss("reference_free_plackett_luce", data, beta=0.3, top_k=top_k), expected)


@relation("reference_free_rank_net", "`simpo` at gamma_beta_ratio = 0, summed over all pairs of a ranking.")
def _():
    data = rankings().pairs("all")
    expected = summed_over_pairs(loss("simpo", data, beta=0.3, gamma_beta_ratio=0.0), data)
    same(loss("reference_free_rank_net", rankings(), beta=0.3), expected)


@relation("rrhf", "`slic` at delta = 0 and lam = 1, for K = 2, rank_weight = 1 and responses of one token.")
def _():
    data = one_token(rankings(2))
    same(loss("rrhf", data, rank_weight=1.0), loss("slic", data.pairs(), delta=0.0, lam=1.0))


@relation("pro", "`simpo` at beta = r_w - r_l and gamma_beta_ratio = 0, for K = 2 and sft_weight = 0.")
def _():
    data = rankings(2, scores=torch.tensor([[2.0, 0.5]]).expand(5, 2).double())
    data = data.replace(ranks=torch.tensor([[0, 1]]).expand(5, 2))
    same(loss("pro", data, sft_weight=0.0), loss("simpo", data.pairs(), beta=1.5, gamma_beta_ratio=0.0))


@relation("mppo", "`alphapo` at alpha = -1, beta = 1 and gamma = 0, for K = 2.")
def _():
    same(loss("mppo", rankings(2)), loss("alphapo", rankings(2).pairs(), alpha=-1.0, beta=1.0, gamma=0.0))


# --- and all of them ---------------------------------------------------------------------------------------------


def test_each_stated_relation_has_a_test():
    stated = {(spec.name, line) for spec in list_losses() for line in spec.sections["Relations"].splitlines()}
    assert {(name, line) for name, line in stated if line != "None."} == set(RELATIONS), (
        "Each line under Relations in a loss's docstring needs a test under @relation(loss, line) in this file."
    )


@pytest.mark.parametrize("key", RELATIONS, ids=[f"{name}: {statement}" for name, statement in RELATIONS])
def test_relation(key):
    RELATIONS[key]()
