"""Every loss a second time, in plain Python, transcribed from its paper. The library is compared with these.

Nothing here imports torch or the library. A pair is two `Response`s (w chosen, z rejected), a ranking is a list.
The keyword arguments have the library's defaults.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise as successive
from itertools import permutations
from math import exp, log, log1p, prod
from typing import Any


@dataclass
class Response:
    """One response: summed log-probs in nats, length in tokens, rank (0 = best) and the data's score."""

    logp: float
    ref_logp: float
    length: int
    rank: int = 0
    score: float = 0.0
    label: int = 0
    # of the prompt: a completion of another prompt, the scores of samples of the reference, the row's weight
    mismatched: float = 0.0
    samples: tuple[float, ...] = ()
    weight: float = 1.0

    @property
    def ratio(self) -> float:
        """D: log pi - log pi_ref."""
        return self.logp - self.ref_logp

    @property
    def mean(self) -> float:
        """m: log pi per token."""
        return self.logp / self.length


PAIRWISE: dict[str, Callable[..., float]] = {}
BATCHWISE: dict[str, Callable[..., list[float]]] = {}
LISTWISE: dict[str, Callable[..., float]] = {}

# Losses that may rise when the better response becomes more likely, each with the reason why the paper intends it.
TURNS_ROUND: dict[str, str] = {}


def _into(table: dict[str, Any]) -> Callable[..., Any]:
    def keep(fn: Any = None, *, turns_round: str | None = None) -> Any:
        if fn is None:
            return lambda fn: keep(fn, turns_round=turns_round)
        table[fn.__name__] = fn
        if turns_round is not None:
            TURNS_ROUND[fn.__name__] = turns_round
        return fn

    return keep


pairwise, batchwise, listwise = _into(PAIRWISE), _into(BATCHWISE), _into(LISTWISE)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return log1p(exp(-x))


# --- pairs, with a reference ---------------------------------------------------------------------------------------


@pairwise
def dpo(w, z, beta=0.1):
    return nls(beta * w.ratio - beta * z.ratio)


@pairwise(turns_round="label smoothing puts the optimum at a finite margin")
def cdpo(w, z, beta=0.1, label_smoothing=0.1):
    u = beta * (w.ratio - z.ratio)
    return (1 - label_smoothing) * nls(u) + label_smoothing * nls(-u)


@pairwise
def robust(w, z, beta=0.1, label_smoothing=0.0):
    u = beta * (w.ratio - z.ratio)
    return ((1 - label_smoothing) * nls(u) - label_smoothing * nls(-u)) / (1 - 2 * label_smoothing)


@pairwise
def hinge(w, z, beta=0.1):
    return max(0.0, 1 - beta * (w.ratio - z.ratio))


@pairwise(turns_round="a regression on a target margin")
def ipo(w, z, tau=0.1):
    return (w.ratio / w.length - z.ratio / z.length - 1 / (2 * tau)) ** 2


@pairwise
def ln_dpo(w, z, beta=0.1):
    return nls(beta / w.length * w.ratio - beta / z.length * z.ratio)


@pairwise
def minor_dpo(w, z, beta=0.1):
    return nls(beta * w.ratio - beta * max(0.0, z.ratio))


@pairwise
def bounded_dpo(w, z, beta=0.1, lam=0.5):
    # pi_mix = lam pi + (1 - lam) pi_ref stands in for the policy of the rejected response.
    mixture = lam * exp(z.logp) + (1 - lam) * exp(z.ref_logp)
    return nls(beta * w.ratio - beta * (log(mixture) - z.ref_logp))


@pairwise
def dpop(w, z, beta=0.1, lam=50.0):
    return nls(beta * (w.ratio - z.ratio - lam * max(0.0, w.ref_logp - w.logp)))


@pairwise
def dpo_shift(w, z, beta=0.1, lam=0.7):
    return nls(beta * w.ratio - lam * beta * z.ratio)


@pairwise
def balanced_po(w, z, beta=0.1, alpha=0.3):
    return nls(min(beta * w.ratio, -alpha * beta * z.ratio))


@pairwise(turns_round="a regression on a target reward")
def cal_dpo(w, z, beta=0.002):
    return nls(w.ratio - z.ratio) + 0.5 * ((w.ratio - 0.5 / beta) ** 2 + (z.ratio + 0.5 / beta) ** 2)


@pairwise
def r_dpo(w, z, beta=0.1, alpha=0.01):
    return nls(beta * (w.ratio - z.ratio) + alpha * w.length - alpha * z.length)


@pairwise
def odpo(w, z, beta=0.1, alpha=1.0):
    return nls(beta * (w.ratio - z.ratio) - alpha * log(w.score - z.score))


def score_preference(w, z, eta):
    return sigmoid(eta * w.score - eta * z.score)


@pairwise(turns_round="a regression on the score difference")
def rebel(w, z, eta=1.0):
    return (w.ratio - z.ratio - eta * (w.score - z.score)) ** 2


@pairwise(turns_round="the optimum is the preference that the scores state")
def reward_aware_po(w, z, beta=0.2, eta=1.0):
    p, q = sigmoid(beta * (w.ratio - z.ratio)), score_preference(w, z, eta)
    return q * log(q / p) + (1 - q) * log((1 - q) / (1 - p))


@pairwise(turns_round="the optimum is the preference that the scores state")
def reward_aware_po_forward_kl(w, z, beta=0.2, eta=1.0):
    p, q = sigmoid(beta * (w.ratio - z.ratio)), score_preference(w, z, eta)
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


@pairwise(turns_round="a regression on the score difference")
def reward_aware_po_squared(w, z, beta=0.2, eta=1.0):
    return (beta * (w.ratio - z.ratio) - eta * (w.score - z.score)) ** 2


@pairwise
def chi_po(w, z, beta=0.1, r_max=10.0):
    def phi(ratio):
        return ratio + log(ratio)

    difference = beta * phi(exp(w.ratio)) - beta * phi(exp(z.ratio))
    return nls(max(-2 * r_max, min(2 * r_max, difference)))


@pairwise(turns_round="label smoothing puts the optimum at a finite margin")
def exo_pair(w, z, beta=0.1, label_smoothing=1e-3):
    p_w = exp(beta * w.ratio) / (exp(beta * w.ratio) + exp(beta * z.ratio))
    return p_w * log(p_w / (1 - label_smoothing)) + (1 - p_w) * log((1 - p_w) / label_smoothing)


@pairwise(turns_round="distinguishes responses from samples of the reference, so rewards stay finite")
def nca_pair(w, z, beta=0.1):
    return nls(beta * w.ratio) + 0.5 * nls(-beta * w.ratio) + 0.5 * nls(-beta * z.ratio)


@pairwise
def bco_pair(w, z, beta=0.1):
    return nls(beta * w.ratio) + nls(-beta * z.ratio)


@pairwise(turns_round="a regression on a target reward")
def sppo_hard(w, z, beta=0.1):
    return (w.ratio - (1 - 0.5) / beta) ** 2 + (z.ratio - (0 - 0.5) / beta) ** 2


@pairwise
def apo_zero(w, z, beta=0.1):
    return 1 - sigmoid(beta * w.ratio) + sigmoid(beta * z.ratio)


@pairwise(turns_round="lowers the chosen response, for data worse than the policy")
def apo_down(w, z, beta=0.1):
    return sigmoid(beta * w.ratio) + 1 - sigmoid(beta * (w.ratio - z.ratio))


@pairwise(turns_round="has a small hump right of a margin of 0")
def discopop(w, z, beta=0.1, tau=0.05):
    u = beta * (w.ratio - z.ratio)
    gate = sigmoid(u / tau)
    return (1 - gate) * nls(u) + gate * exp(-u)


@pairwise
def dpo_rk(w, z, beta=0.1, nu=3.0):
    # Rao and Kupper, with strengths e^r: i beats j with e^ri / (e^ri + nu e^rj); a tie is what is left.
    strong, weak = exp(beta * w.ratio), exp(beta * z.ratio)
    win, loss = strong / (strong + nu * weak), weak / (weak + nu * strong)
    return -log(1 - win - loss) if w.rank == z.rank else -log(win)


@pairwise
def dpo_davidson(w, z, beta=0.1, nu=1.0):
    # Davidson, with strengths e^r: wins and ties in proportion to e^ri, e^rj and 2 nu sqrt(e^ri e^rj).
    strong, weak = exp(beta * w.ratio), exp(beta * z.ratio)
    tie = 2 * nu * (strong * weak) ** 0.5
    return -log((tie if w.rank == z.rank else strong) / (strong + weak + tie))


# --- pairs, with a reference and the rest of the batch -------------------------------------------------------------


def _places(values):
    """The place of each value when sorted; equal ones (a response that is in several pairs) take places in a row."""
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(i) for i in range(len(values))]


@batchwise
def aot(pairs, beta=0.1, label_smoothing=0.0):
    policy = [w.logp - z.logp for w, z in pairs]
    reference = sorted(w.ref_logp - z.ref_logp for w, z in pairs)
    matched = [beta * (x - reference[place]) for x, place in zip(policy, _places(policy), strict=True)]
    return [(1 - label_smoothing) * nls(u) + label_smoothing * nls(-u) for u in matched]


@batchwise
def aot_unpaired(pairs, beta=0.1, label_smoothing=0.0):
    chosen = [w.ratio for w, _ in pairs]
    rejected = sorted(z.ratio for _, z in pairs)
    matched = [beta * (x - rejected[place]) for x, place in zip(chosen, _places(chosen), strict=True)]
    return [(1 - label_smoothing) * nls(u) + label_smoothing * nls(-u) for u in matched]


@batchwise
def beta_dpo(pairs, beta=0.1, alpha=0.6, running_mean=0.0):
    margins = [w.ratio - z.ratio for w, z in pairs]
    dynamic = max(1e-3, beta * (1 + alpha * (sum(margins) / len(margins) - running_mean)))
    return [nls(dynamic * m) for m in margins]


@batchwise
def bco(pairs, beta=0.01, running_mean=0.0):
    return [nls(beta * w.ratio - running_mean) + nls(-(beta * z.ratio - running_mean)) for w, z in pairs]


# --- pairs, no reference -------------------------------------------------------------------------------------------


@pairwise
def reference_free_dpo(w, z, beta=0.1):
    return nls(beta * (w.logp - z.logp))


@pairwise
def simpo(w, z, beta=2.0, gamma_beta_ratio=0.5):
    return nls(beta / w.length * w.logp - beta / z.length * z.logp - gamma_beta_ratio * beta)


@pairwise
def alphapo(w, z, beta=2.5, gamma=0.1, alpha=0.25):
    def reward(y):
        return beta * (1 - exp(y.mean) ** -alpha) / alpha if alpha else beta * y.mean

    return nls(reward(w) - reward(z) - gamma)


@pairwise
def simper(w, z):
    return exp(z.mean) - exp(w.mean)


@pairwise
def cpo(w, z, beta=0.1, alpha=1.0):
    return nls(beta * w.logp - beta * z.logp) + alpha * -w.mean


@pairwise
def cpo_simpo(w, z, beta=10.0, gamma=5.4, alpha=0.05):
    return nls(beta * w.mean - beta * z.mean - gamma) + alpha * -w.mean


@pairwise
def orpo(w, z, lam=0.1):
    def odds(y):
        return exp(y.mean) / (1 - exp(y.mean))

    return -w.mean + lam * nls(log(odds(w) / odds(z)))


@pairwise
def slic(w, z, delta=1.0, lam=0.1):
    return max(0.0, delta - w.logp + z.logp) - lam * w.logp


@pairwise
def unlikelihood(w, z, alpha=0.5):
    return -w.logp + alpha * z.logp


# --- rankings ------------------------------------------------------------------------------------------------------


def exact_order_probability(rewards: list[float], orders: list[tuple[int, ...]]) -> float:
    """Probability under Plackett-Luce that one of `orders` (each a tuple of indices, best first) comes up."""
    strength = [exp(r) for r in rewards]
    return sum(prod(strength[o[k]] / sum(strength[i] for i in o[k:]) for k in range(len(o))) for o in orders)


def orders_allowed(ranks: list[int]) -> list[tuple[int, ...]]:
    """Every order of the responses that the ranks allow; several where there are ties."""
    return [o for o in permutations(range(len(ranks))) if all(ranks[a] <= ranks[b] for a, b in successive(o))]


def _plackett_luce(responses, rewards, top_k=None):
    total = 0.0
    for i, y in enumerate(responses):
        lower = [s for s, z in zip(rewards, responses, strict=True) if z.rank > y.rank]
        above = sum(z.rank < y.rank for z in responses)
        if lower and (top_k is None or above < top_k):
            total -= log(exp(rewards[i]) / (exp(rewards[i]) + sum(exp(s) for s in lower)))
    return total


def _better_worse(responses):
    return [(i, j) for i, a in enumerate(responses) for j, b in enumerate(responses) if a.rank < b.rank]


def _best(responses):
    return [y for y in responses if y.rank == min(z.rank for z in responses)]


def _mean(values):
    return sum(values) / len(values)


def _softmax(values):
    return [exp(v) / sum(exp(x) for x in values) for v in values]


@listwise
def plackett_luce(responses, beta=0.1, top_k=None):
    return _plackett_luce(responses, [beta * y.ratio for y in responses], top_k)


@listwise
def softmax_dpo(responses, beta=1.0):
    return _plackett_luce(responses, [beta * y.ratio for y in responses], 1)


@listwise
def rank_net(responses, beta=0.05):
    s = [beta * y.ratio for y in responses]
    return sum(nls(s[i] - s[j]) for i, j in _better_worse(responses))


@listwise
def lipo_lambda(responses, beta=0.05):
    s = [beta * y.ratio for y in responses]
    place = [1 + sum(x > v for x in s) for v in s]
    total = 0.0
    for i, j in _better_worse(responses):
        gain = abs((2 ** responses[i].score - 1) - (2 ** responses[j].score - 1))
        discount = abs(1 / log(1 + place[i]) - 1 / log(1 + place[j]))
        total += gain * discount * nls(s[i] - s[j])
    return total


@listwise(turns_round="matches a distribution that gives weight to the other responses")
def info_nca(responses, beta=0.01, alpha=1.0):
    q, p = _softmax([y.score / alpha for y in responses]), _softmax([beta * y.ratio for y in responses])
    return -sum(a * log(b) for a, b in zip(q, p, strict=True))


@listwise(turns_round="distinguishes responses from samples of the reference, so rewards stay finite")
def nca(responses, beta=0.01, alpha=1.0):
    q = _softmax([y.score / alpha for y in responses])
    return sum(a * nls(beta * y.ratio) + nls(-beta * y.ratio) / len(q) for a, y in zip(q, responses, strict=True))


@listwise(turns_round="matches a distribution that gives weight to the other responses")
def exo(responses, beta=0.1, beta_r=0.1):
    p, q = _softmax([beta * y.ratio for y in responses]), _softmax([y.score / beta_r for y in responses])
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


@listwise
def reference_free_plackett_luce(responses, beta=2.0, top_k=None):
    return _plackett_luce(responses, [beta * y.mean for y in responses], top_k)


@listwise
def reference_free_rank_net(responses, beta=2.0):
    return sum(nls(beta * (responses[i].mean - responses[j].mean)) for i, j in _better_worse(responses))


@listwise
def rrhf(responses, rank_weight=100.0):
    ranking = sum(max(0.0, responses[j].mean - responses[i].mean) for i, j in _better_worse(responses))
    return rank_weight * ranking - _mean([y.mean for y in _best(responses)])


@listwise
def pro(responses, sft_weight=0.05):
    total = 0.0
    for y in responses:
        lower = [z for z in responses if z.rank > y.rank]
        if lower:
            temperature = max(y.score - z.score for z in lower)
            positive = exp(y.mean * temperature)
            negative = sum(exp(z.mean * (y.score - z.score)) for z in lower)
            total -= log(positive / (positive + negative))
    return total - sft_weight * (len(responses) - 1) ** 2 * _mean([y.logp for y in _best(responses)])


@listwise
def mppo(responses):
    best = _best(responses)
    rejected = [z for z in responses if z.rank > best[0].rank]
    if not rejected:
        return 0.0
    return nls(len(rejected) * _mean([exp(y.mean) for y in best]) - sum(exp(z.mean) for z in rejected))


@batchwise
def sft(groups):
    # Shares of a prompt's best responses, then the mean log-prob over the tokens of the batch.
    logps = [_mean([y.logp for y in _best(g)]) for g in groups]
    tokens = [_mean([y.length for y in _best(g)]) for g in groups]
    return [-x * len(groups) / sum(tokens) for x in logps]


# --- labels and quantiles -------------------------------------------------------------------------------------------


@batchwise
def kto(groups, beta=0.1, lambda_d=1.0, lambda_u=1.0):
    labelled = [[y for y in group if y.label] for group in groups]
    points = [group[0].mismatched for group in labelled if group]
    z0 = max(0.0, sum(points) / len(points))

    def value(y):
        if y.label > 0:
            return lambda_d - lambda_d * sigmoid(beta * (y.ratio - z0))
        return lambda_u - lambda_u * sigmoid(beta * (z0 - y.ratio))

    return [sum(map(value, group)) / len(group) for group in labelled]


@listwise
def apo_zero_unpaired(group, beta=0.1, lambda_d=1.0, lambda_u=1.0):
    losses = [
        lambda_d * (1 - sigmoid(beta * y.ratio)) if y.label > 0 else lambda_u * sigmoid(beta * y.ratio)
        for y in group
        if y.label
    ]
    return sum(losses) / len(losses)


@batchwise
def bco_unpaired(groups, beta=0.01, running_mean=0.0):
    losses = []
    for group in groups:
        of_responses = [
            nls(beta * y.ratio - running_mean) if y.label > 0 else y.weight * nls(running_mean - beta * y.ratio)
            for y in group
            if y.label
        ]
        losses.append(sum(of_responses) / len(of_responses))
    return losses


def calibrated(quantile, beta):
    return quantile - beta * log(beta * (exp(1 / beta) - 1))


@listwise(turns_round="a regression on a target reward")
def qrpo(group, beta=0.1):
    errors = []
    for y in group:
        quantile = sum(sample <= y.score for sample in y.samples) / len(y.samples)
        errors.append((calibrated(quantile, beta) - beta * y.ratio) ** 2)
    return sum(errors) / len(errors)


@listwise(turns_round="a regression on a target reward")
def qrpo_group(group, beta=0.1):
    errors = []
    for i, y in enumerate(group):
        others = [z.score for j, z in enumerate(group) if j != i]
        quantile = sum(score <= y.score for score in others) / len(others)
        errors.append((calibrated(quantile, beta) - beta * y.ratio) ** 2)
    return sum(errors) / len(errors)
