"""Compare the trainer on rankings of K = 2..5, ragged and with ties, with a float64 transcription.

The expected values use no code of the package. They come from the dataset's tokens, a float64 copy of the models that
runs on one response at a time, and the plain Python losses of `tests/losses/transcriptions.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import helpers
from tests.losses import transcriptions as reference
from tests.losses.transcriptions import Response
from tests.training import support
from trl_dpo_ext import LossSpec, list_losses
from trl_dpo_ext.types import PAIRINGS

PARAMETERS = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)
ROUNDING = 1e-4  # relative; float32 through a model gave up to 2e-5, on a CPU without AVX-512
OWN = {spec.name: spec for spec in list_losses() if spec.fn.__module__.startswith("trl_dpo_ext.losses")}
# Losses with a running mean have their own test below.
STATELESS = [spec for spec in OWN.values() if spec.statistic is None]


@dataclass
class Tokens(Response):
    """A response with per-token log-probs and logs of sums of squared probabilities, for the tests that need them."""

    token_logps: tuple[float, ...] = ()
    ref_token_logps: tuple[float, ...] = ()
    log_sum_sq: tuple[float, ...] = ()


Prompt = list[Tokens]
Loss = Callable[[list[Prompt]], float]


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def pairs_of(prompt: Prompt, pairing: str, ties: bool = False) -> list[tuple[Tokens, Tokens]]:
    """Return the pairs (better, worse) of a ranking, written from the documentation."""
    ranks = [y.rank for y in prompt]
    best, worst = min(ranks), max(ranks)
    pairs = []
    for i, w in enumerate(prompt):
        for j, z in enumerate(prompt):
            a, b = w.rank, z.rank
            if a < b:
                wanted = {
                    "all": True,
                    "best_vs_rest": a == best,
                    "adjacent": not any(a < c < b for c in ranks),
                    "best_vs_worst": a == best and b == worst,
                }
            elif a == b and i < j and ties:
                wanted = {"all": True, "adjacent": True, "best_vs_rest": a == best, "best_vs_worst": best == worst}
            else:
                continue
            if wanted[pairing]:
                pairs.append((w, z))
    return pairs


def per_prompt(spec: LossSpec, prompts: list[Prompt], pairing: str = "all", **hyperparameters: Any) -> list[float]:
    """Return one value per prompt: the listwise loss, or the mean over the prompt's pairs."""
    if spec.name in reference.LISTWISE:
        return [reference.LISTWISE[spec.name](prompt, **hyperparameters) for prompt in prompts]
    if spec.listwise:
        return reference.BATCHWISE[spec.name](prompts, **hyperparameters)
    chosen = [pairs_of(prompt, pairing, "ties" in spec.needs) for prompt in prompts]
    if spec.name in reference.PAIRWISE:
        values = [[reference.PAIRWISE[spec.name](w, z, **hyperparameters) for w, z in pairs] for pairs in chosen]
    else:
        flat = iter(reference.BATCHWISE[spec.name]([pair for pairs in chosen for pair in pairs], **hyperparameters))
        values = [[next(flat) for _ in pairs] for pairs in chosen]
    return [mean(v) for v in values]


class Setting:
    """A trainer whose policy differs from its reference, one batch, and the float64 log-probs of every response."""

    def __init__(self, model_dir: str, folder: Any, **layout: bool) -> None:
        self.layout = layout
        data = support.complete_rows(model_dir, folder, 5)
        self.trainer = support.trainer(model_dir, folder, data, loss_type="odpo", use_weighting=True, **layout)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in self.trainer.model.parameters():
                weight += 0.005 * torch.randn(weight.shape, generator=generator)
        self.rows = list(self.trainer.train_dataset)
        # The last of each row is a completion of another prompt.
        assert [len(row["ranks"]) - 1 for row in self.rows] == [2, 3, 4, 5, 2]
        assert [len(set(row["ranks"][:-1])) for row in self.rows] == [2, 2, 3, 4, 2]
        self.batch = support.batch(self.trainer)

        policy, ref = (copy.deepcopy(m).double() for m in (self.trainer.model, self.trainer.ref_model))
        for model in (policy, ref):
            model.__dict__.pop("forward", None)
        parameters = [policy.get_parameter(name) for name in PARAMETERS]
        self.responses: Prompt = []
        jacobian = []
        for row in self.rows:
            *own, other = row["completion_ids"]
            with torch.no_grad():
                ratios = [self._one(model, row["prompt_ids"], other)[0].sum().item() for model in (policy, ref)]
            for k, ids in enumerate(own):
                logps, log_sum_sq = self._one(policy, row["prompt_ids"], ids)
                jacobian.append(torch.autograd.grad(logps.sum(), parameters))
                with torch.no_grad():
                    ref_logps, _ = self._one(ref, row["prompt_ids"], ids)
                self.responses.append(
                    Tokens(
                        logp=logps.sum().item(),
                        ref_logp=ref_logps.sum().item(),
                        length=len(ids),
                        rank=row["ranks"][k],
                        score=row["scores"][k],
                        label=1 if row["labels"][k] else -1,
                        mismatched=ratios[0] - ratios[1],
                        samples=tuple(row["reference_scores"]),
                        weight=row["weight"],
                        token_logps=tuple(logps.tolist()),
                        ref_token_logps=tuple(ref_logps.tolist()),
                        log_sum_sq=tuple(log_sum_sq.tolist()),
                    )
                )
        self.jacobian = {n: torch.stack(d) for n, d in zip(PARAMETERS, zip(*jacobian, strict=True), strict=True)}

    @staticmethod
    def _one(model: torch.nn.Module, prompt_ids: list[int], completion_ids: list[int]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([prompt_ids + completion_ids])
        scores = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        return scores[range(len(completion_ids)), completion_ids], (2 * scores).logsumexp(-1)

    def prompts(self, changed: int | None = None, by: float = 0.0) -> list[Prompt]:
        """Return the prompts with their responses; `by` is added to the log-prob of response number `changed`."""
        flat = iter(replace(y, logp=y.logp + by * (i == changed)) for i, y in enumerate(self.responses))
        return [[next(flat) for _ in row["ranks"][:-1]] for row in self.rows]

    def expected(self, loss: Loss) -> tuple[float, dict[str, Tensor]]:
        """Return value and gradient: central differences per response log-prob, then backpropagation in float64."""
        step = 1e-5
        slopes = torch.tensor(
            [
                (loss(self.prompts(i, step)) - loss(self.prompts(i, -step))) / (2 * step)
                for i in range(len(self.responses))
            ],
            dtype=torch.float64,
        )
        return loss(self.prompts()), {n: torch.tensordot(slopes, d, dims=1) for n, d in self.jacobian.items()}

    def computed(self, **settings: Any) -> tuple[float, dict[str, Tensor]]:
        """Return value and gradient of the trainer's `compute_loss`."""
        trainer = self.trainer
        support.set_losses(trainer, **self.layout, **settings)
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, self.batch)
        loss.backward()
        return loss.item(), {name: trainer.model.get_parameter(name).grad.clone() for name in PARAMETERS}

    def check(self, loss: Loss, **settings: Any) -> None:
        """Compare value and gradient of the trainer with those of the transcription."""
        expected, gradients = self.expected(loss)
        value, found = self.computed(**settings)
        assert value == pytest.approx(expected, rel=ROUNDING)
        support.assert_same_tensors(found, gradients, rtol=ROUNDING)

    def check_value(self, loss: Loss, **settings: Any) -> None:
        value, _ = self.computed(**settings)
        assert value == pytest.approx(loss(self.prompts()), rel=ROUNDING)


@pytest.fixture(scope="module")
def setting(tiny_model_dir, tmp_path_factory):
    return Setting(tiny_model_dir, tmp_path_factory.mktemp("rankings"), **support.PADDED)


@pytest.fixture(scope="module", params=support.LAYOUTS)
def any_layout(request, tiny_model_dir, tmp_path_factory):
    return Setting(tiny_model_dir, tmp_path_factory.mktemp("rankings"), **support.LAYOUTS[request.param])


@pytest.mark.parametrize(
    ("spec", "pairing"),
    [(spec, pairing) for spec in STATELESS for pairing in (["all"] if spec.listwise else PAIRINGS)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_each_loss_and_pairing(spec, pairing, setting):
    setting.check(lambda prompts: mean(per_prompt(spec, prompts, pairing)), loss_type=[spec.name], pairing=pairing)


@pytest.mark.parametrize("name", ["plackett_luce", "dpo", "ipo", "simpo", "sft"])
def test_layouts(name, any_layout):
    any_layout.check(lambda prompts: mean(per_prompt(OWN[name], prompts)), loss_type=[name])


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_losses_with_a_running_mean(pairing, setting):
    assert set(OWN) - {spec.name for spec in STATELESS} == {"bco", "bco_unpaired", "beta_dpo"}
    pairs = [pair for prompt in setting.prompts() for pair in pairs_of(prompt, pairing)]

    # After one batch, the running mean is the batch's mean. No gradient flows through it.
    shift = mean([0.01 * (w.ratio + z.ratio) / 2 for w, z in pairs])
    setting.check(
        lambda prompts: mean(per_prompt(OWN["bco"], prompts, pairing, running_mean=shift)),
        loss_type=["bco"],
        pairing=pairing,
    )
    shift = mean([mean([0.01 * y.ratio for y in prompt]) for prompt in setting.prompts()])
    setting.check(
        lambda prompts: mean(per_prompt(OWN["bco_unpaired"], prompts, running_mean=shift)),
        loss_type=["bco_unpaired"],
    )
    # The moving average starts at 0 and adds a tenth of each batch. With a constant beta, beta-DPO is DPO.
    margin = mean([w.ratio - z.ratio for w, z in pairs])
    beta = 0.1 * (1 + 0.6 * (margin - 0.1 * margin))
    assert abs(beta - 0.1) > 1e-3
    setting.check(
        lambda prompts: mean(per_prompt(OWN["dpo"], prompts, pairing, beta=beta)),
        loss_type=["beta_dpo"],
        pairing=pairing,
    )


def test_hyperparameters_arrive(setting):
    setting.check(
        lambda prompts: mean(per_prompt(OWN["plackett_luce"], prompts, beta=0.7, top_k=2)),
        loss_type=["plackett_luce"],
        beta=0.7,
        loss_kwargs={"plackett_luce": {"top_k": 2}},
    )


def test_a_mix_with_weights(setting):
    def loss(prompts: list[Prompt]) -> float:
        return (
            0.5 * mean(per_prompt(OWN["plackett_luce"], prompts, beta=0.2))
            + 2.0 * mean(per_prompt(OWN["ipo"], prompts, "adjacent", tau=0.3))
            + 0.25 * mean(per_prompt(OWN["sft"], prompts))
            + 1.5 * mean(per_prompt(OWN["simpo"], prompts, "adjacent", beta=0.2, gamma_beta_ratio=0.8))
        )

    setting.check(
        loss,
        loss_type=["plackett_luce", "ipo", "sft", "simpo"],
        loss_weights=[0.5, 2.0, 0.25, 1.5],
        pairing="adjacent",
        beta=0.2,
        loss_kwargs={"ipo": {"tau": 0.3}, "simpo": {"gamma_beta_ratio": 0.8}},
    )


# Modifiers that apply to any loss


def f_prime(y: Tokens, kind: str) -> Tokens:
    """Replace the response's log-ratio by the implicit reward of another divergence, arXiv 2309.16240."""
    t = math.exp(y.ratio)
    reward = {
        "forward_kl": 1 - 1 / t,
        "js_divergence": math.log(2 * t / (1 + t)),
        "alpha_divergence": (1 - t**-0.3) / 0.3,  # alpha = 0.7
    }[kind]
    return replace(y, logp=reward, ref_logp=0.0)


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_f_divergences_of_rankings(kind, setting):
    for name in ("plackett_luce", "dpo"):
        setting.check(
            lambda prompts, name=name: mean(
                per_prompt(OWN[name], [[f_prime(y, kind) for y in prompt] for prompt in prompts])
            ),
            loss_type=[name],
            f_divergence_type=kind,
            f_alpha_divergence_coef=0.7,
        )


def weighted(y: Tokens, shared: int, alpha: float) -> Tokens:
    def total(logps: Sequence[float]) -> float:
        return sum(logps[:shared]) + alpha * sum(logps[shared:])

    return replace(y, logp=total(y.token_logps), ref_logp=total(y.ref_token_logps))


def test_length_weighting_of_rankings(any_layout):
    """LD-DPO weights the tokens beyond the length that all responses of a pair or ranking reach."""

    def of_pairs(prompts: list[Prompt]) -> float:
        values = []
        for prompt in prompts:
            losses = []
            for w, z in pairs_of(prompt, "all"):
                shared = min(w.length, z.length)
                losses.append(reference.PAIRWISE["dpo"](weighted(w, shared, 0.3), weighted(z, shared, 0.3)))
            values.append(mean(losses))
        return mean(values)

    def of_rankings(prompts: list[Prompt]) -> float:
        cut = [[weighted(y, min(z.length for z in prompt), 0.3) for y in prompt] for prompt in prompts]
        return mean(per_prompt(OWN["plackett_luce"], cut))

    any_layout.check_value(of_pairs, loss_type=["dpo"], ld_alpha=0.3)
    any_layout.check_value(of_rankings, loss_type=["plackett_luce"], ld_alpha=0.3)


def clipped(y: Response, low: float, high: float) -> Response:
    """The response as humanline sees it: each token's log-ratio within the limits."""
    ratios = [min(max(p - r, low), high) for p, r in zip(y.token_logps, y.ref_token_logps, strict=True)]
    return replace(y, logp=y.ref_logp + sum(ratios))


@pytest.mark.parametrize("name", ["dpo", "plackett_luce", "bco_pair"])
def test_humanline(name, any_layout):
    low, high = -0.02, 0.03

    def cut(prompts: list[Prompt]) -> list[Prompt]:
        return [[clipped(y, low, high) for y in prompt] for prompt in prompts]

    ratios = [
        p - r for x in any_layout.prompts() for y in x for p, r in zip(y.token_logps, y.ref_token_logps, strict=True)
    ]
    assert min(ratios) < low < 0 < high < max(ratios), "the limits cut nothing"
    any_layout.check_value(
        lambda prompts: mean(per_prompt(OWN[name], cut(prompts))), loss_type=[name], humanline=[low, high]
    )


def test_humanline_before_length_weighting(setting):
    def of_pairs(prompts: list[Prompt]) -> float:
        values = []
        for prompt in prompts:
            losses = []
            for w, z in pairs_of(prompt, "all"):
                ratios = []
                for y in (w, z):
                    shared = min(w.length, z.length)
                    of_tokens = [
                        min(max(p - r, -0.02), 0.03) * (1 if t < shared else 0.3)
                        for t, (p, r) in enumerate(zip(y.token_logps, y.ref_token_logps, strict=True))
                    ]
                    ratios.append(sum(of_tokens))
                losses.append(reference.nls(0.1 * (ratios[0] - ratios[1])))
            values.append(mean(losses))
        return mean(values)

    setting.check_value(of_pairs, loss_type=["dpo"], humanline=[-0.02, 0.03], ld_alpha=0.3)


def test_humanline_leaves_a_reference_free_loss_alone(setting):
    def mix(prompts: list[Prompt]) -> float:
        cut = [[clipped(y, -0.02, 0.03) for y in prompt] for prompt in prompts]
        return mean(per_prompt(OWN["dpo"], cut)) + mean(per_prompt(OWN["simpo"], prompts))

    setting.check_value(mix, loss_type=["dpo", "simpo"], humanline=[-0.02, 0.03])


def test_weights_of_rankings(any_layout):
    """WPO, arXiv 2406.11827: the weight of a response is exp(mean over its tokens of log p - log sum p^2)."""

    def weight(y: Tokens) -> float:
        return math.exp(mean([a - b for a, b in zip(y.token_logps, y.log_sum_sq, strict=True)]))

    def loss(prompts: list[Prompt]) -> float:
        return mean(
            [
                mean([weight(w) * weight(z) * reference.PAIRWISE["dpo"](w, z) for w, z in pairs_of(prompt, "all")])
                for prompt in prompts
            ]
        )

    any_layout.check_value(loss, loss_type=["dpo"], use_weighting=True)


@pytest.mark.parametrize("layout", support.LAYOUTS)
def test_a_streamed_evaluation_counts_every_response(layout, tiny_model_dir, tmp_path):
    """By default, accelerate truncates each tensor of a streamed batch to the number of prompts."""
    data = helpers.ranked_dataset(6)
    trainer = support.trainer(tiny_model_dir, tmp_path, data, loss_type="plackett_luce", **support.LAYOUTS[layout])
    with torch.no_grad():
        trainer.model.lm_head.weight[:, 5:50] *= 1.1  # so that policy and reference differ
    expected, streamed = trainer.evaluate(data), trainer.evaluate(data.to_iterable_dataset())
    for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
        assert streamed[name] == pytest.approx(expected[name], rel=1e-6), name
