"""Compare the logged metrics with loops over responses, written from the metrics' descriptions."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import trainer_callback

from tests import helpers
from tests.training import support
from trl_dpo_ext.losses import get_loss
from trl_dpo_ext.training import token_rate
from trl_dpo_ext.training.metrics import RANKING_ONLY, best_mask, kendall_tau, response_metrics, token_metrics
from trl_dpo_ext.training.objective import Objective, Term
from trl_dpo_ext.types import RankedResponses


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def objective(loss: str, **hyperparameters: Any) -> Objective:
    spec = get_loss(loss)
    return Objective([Term(spec, spec.check(hyperparameters), 1.0)])


def random_responses(seed: int) -> RankedResponses:
    """Return 40 prompts with up to five responses, tied ranks and log-probs, and some prompts that are all tied."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, (40, 5), generator=generator)

    mask = torch.rand(40, 5, generator=generator) < 0.7
    mask[:, :2] = True
    lengths = integers(6, low=1) * mask
    return RankedResponses(
        # Padding values must have no influence.
        logps=(-integers(5).float()).masked_fill(~mask, float("nan")),
        ref_logps=(-integers(3).float()).masked_fill(~mask, float("nan")),
        lengths=lengths,
        ranks=integers(3).masked_fill(~mask, 0),
        mask=mask,
    )


def present(responses: RankedResponses, b: int) -> list[int]:
    return [k for k in range(responses.mask.shape[1]) if responses.mask[b, k]]


def tau_of(scores: list[float], ranks: list[int]) -> float:
    """Return Kendall's tau over the pairs that the ranking orders; 0 if there is none."""
    signs = []
    for i, j in itertools.combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            signs.append((scores[better] > scores[worse]) - (scores[better] < scores[worse]))
    return mean(signs) if signs else 0.0


def test_kendall_tau_by_hand():
    def tau(scores: list[float], ranks: list[int]) -> float:
        value, _ = kendall_tau(torch.tensor([scores]), torch.tensor([ranks]), torch.ones(1, len(ranks)) > 0)
        return value.item()

    assert tau([3.0, 2.0, 1.0], [0, 1, 2]) == 1
    assert tau([1.0, 2.0, 3.0], [0, 1, 2]) == -1
    assert tau([3.0, 1.0, 2.0, 0.0], [0, 1, 2, 3]) == pytest.approx(4 / 6)  # one of six pairs is in the wrong order
    assert tau([1.0, 1.0, 0.0], [0, 1, 2]) == pytest.approx(2 / 3)  # tied scores are neither concordant nor discordant
    assert tau([5.0, 1.0, 0.0], [0, 0, 1]) == 1  # two comparable pairs, not three
    assert tau([5.0, 1.0], [0, 0]) == 0


@pytest.mark.parametrize("seed", range(3))
def test_kendall_tau_by_pairs(seed):
    responses = random_responses(seed)
    tau, pairs = kendall_tau(responses.logps, responses.ranks, responses.mask)
    for b in range(len(responses)):
        ks = present(responses, b)
        ranks, scores = responses.ranks[b, ks].tolist(), responses.logps[b, ks].tolist()
        assert tau[b].item() == pytest.approx(tau_of(scores, ranks))
        assert pairs[b].item() == sum(x != y for x, y in itertools.combinations(ranks, 2))


@pytest.mark.parametrize("kind", ["reference", "sums", "means"])
@pytest.mark.parametrize("seed", range(3))
def test_responses_by_loops(seed, kind):
    responses = random_responses(seed)
    loss = {"reference": "dpo", "sums": "cpo", "means": "simpo"}[kind]
    totals = response_metrics(responses, responses.pairs("best_vs_worst"), objective(loss, beta=0.5))

    expected: dict[str, list[float]] = {}
    for b in range(len(responses)):
        ks = present(responses, b)
        ranks = responses.ranks[b, ks].tolist()
        logps = responses.logps[b, ks].tolist()
        scores = {
            "reference": [0.5 * (x - y) for x, y in zip(logps, responses.ref_logps[b, ks].tolist(), strict=True)],
            "sums": [0.5 * x for x in logps],
            "means": [0.5 * x / n for x, n in zip(logps, responses.lengths[b, ks].tolist(), strict=True)],
        }[kind]
        if len(set(ranks)) == 1:
            continue  # no pair is ordered
        best = [i for i, rank in enumerate(ranks) if rank == min(ranks)]
        worst = [i for i, rank in enumerate(ranks) if rank == max(ranks)]
        rest = [i for i in range(len(ranks)) if i not in best]
        pairs = list(itertools.product(best, worst))
        for name, value in {
            "rewards/chosen": mean([scores[i] for i in best]),
            "rewards/rejected": mean([scores[i] for i in worst]),
            "rewards/margins": mean([scores[i] - scores[j] for i, j in pairs]),
            "rewards/accuracies": mean([float(scores[i] > scores[j]) for i, j in pairs]),
            "rewards/top1_accuracies": float(max(scores[i] for i in best) > max(scores[i] for i in rest)),
            "rewards/kendall_tau": tau_of(scores, ranks),
            "logps/chosen": mean([logps[i] for i in best]),
            "logps/rejected": mean([logps[i] for i in worst]),
        }.items():
            expected.setdefault(name, []).append(value)
    assert 0 < len(expected["logps/chosen"]) < len(responses)
    assert totals.keys() == expected.keys()
    for name, (total, count) in totals.items():
        assert (total / count).item() == pytest.approx(mean(expected[name]), abs=1e-6), name


def test_pairs_log_no_metrics_of_rankings(tiny_model_dir, tmp_path):
    responses = random_responses(0)
    two = RankedResponses(*(getattr(responses, f)[:, :2] for f in ("logps", "ref_logps", "lengths", "ranks", "mask")))
    totals = response_metrics(two, two.pairs("best_vs_worst"), objective("dpo", beta=0.1))
    # They are counted all the same: another process may have rankings in its batch, and all add their totals up.
    for name in RANKING_ONLY:
        assert totals[f"rewards{name}"][1] == totals["rewards/accuracies"][1]
    assert totals["rewards/top1_accuracies"][0] == totals["rewards/accuracies"][0]
    one = support.trainer(tiny_model_dir, tmp_path, helpers.pair_dataset(4), max_steps=1)
    (log,) = support.train(one).logs
    assert {name for name in log if name.startswith(("rewards", "logps"))} == {
        *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
        "logps/chosen",
        "logps/rejected",
    }


@pytest.mark.parametrize("seed", range(2))
def test_tokens_by_loops(seed):
    responses = random_responses(seed)
    generator = torch.Generator().manual_seed(seed)
    inside = torch.arange(5) < responses.lengths.unsqueeze(2)
    entropy, logits, top1 = (torch.rand(40, 5, 5, generator=generator) * inside for _ in range(3))
    best = best_mask(responses)

    expected: dict[str, list[float]] = {}
    for b in range(len(responses)):
        ks = present(responses, b)
        for k in ks:
            is_best = responses.ranks[b, k] == responses.ranks[b, ks].min()
            assert best[b, k] == is_best
            for t in range(responses.lengths[b, k]):
                expected.setdefault("entropy", []).append(entropy[b, k, t].item())
                expected.setdefault("logits/chosen" if is_best else "logits/rejected", []).append(
                    logits[b, k, t].item()
                )
                if is_best:
                    expected.setdefault("mean_token_accuracy", []).append(top1[b, k, t].item())
    assert not (best & ~responses.mask).any()
    totals = token_metrics(entropy, logits, top1, responses)
    assert totals.keys() == expected.keys()
    for name, (total, count) in totals.items():
        assert (total / count).item() == pytest.approx(mean(expected[name]), rel=1e-5), name


# Through the trainer


@pytest.fixture(scope="module")
def trainer(tiny_model_dir, tmp_path_factory):
    """Return a trainer whose policy differs from its reference, with tied rankings of two to five responses."""
    trainer = support.trainer(
        tiny_model_dir,
        tmp_path_factory.mktemp("metrics"),
        helpers.ranked_dataset(7, ties=True),
        eval_dataset=helpers.ranked_dataset(7, ties=True),
        loss_type=["minor_dpo", "plackett_luce"],
        beta=0.3,
        per_device_eval_batch_size=3,
    )
    support.train(trainer)
    return trainer


@torch.no_grad()
def test_one_batch_through_the_trainer(trainer):
    policy, reference = trainer.model.eval(), trainer.ref_model
    trainer._metrics["eval"].clear()
    trainer.compute_loss(policy, support.batch(trainer))
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}

    tokens: dict[str, list[float]] = {}
    prompts: dict[str, list[float]] = {}
    for row in trainer.train_dataset:
        ranks, rewards = row["ranks"], []
        for ids, rank in zip(row["completion_ids"], ranks, strict=True):
            both = torch.tensor([row["prompt_ids"] + ids])
            logits, others = (
                model(input_ids=both).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
                for model in (policy, reference)
            )
            log_probs = logits.log_softmax(-1)
            of_ids = (range(len(ids)), ids)
            rewards.append(0.3 * (log_probs[of_ids] - others.log_softmax(-1)[of_ids]).sum().item())
            tokens.setdefault("entropy", []).extend((-log_probs.exp() * log_probs).sum(-1).tolist())
            tokens.setdefault("logits/chosen" if rank == 0 else "logits/rejected", []).extend(logits.mean(-1).tolist())
            if rank == 0:
                hits = (logits.argmax(-1) == torch.tensor(ids)).double()
                tokens.setdefault("mean_token_accuracy", []).extend(hits.tolist())
        worst = [r for r, rank in zip(rewards, ranks, strict=True) if rank == max(ranks)]
        best = [r for r, rank in zip(rewards, ranks, strict=True) if rank == 0]
        pairs = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
        for name, value in {
            "rewards/chosen": mean(best),
            "rewards/rejected": mean(worst),
            "rewards/margins": mean(best) - mean(worst),
            "rewards/kendall_tau": tau_of(rewards, ranks),
            # MinorDPO stops penalizing a rejected response once the policy is below the reference.
            "minor_dpo/clipped": mean([float(rewards[j] < 0) for _, j in pairs]),
        }.items():
            prompts.setdefault(name, []).append(value)
    for name, values in (tokens | prompts).items():
        assert logged[name] == pytest.approx(mean(values), abs=2e-5), name
    assert 0 < logged["minor_dpo/clipped"] < 1


def test_the_evaluation_loss_weighs_prompts_not_batches(trainer):
    """Seven prompts in batches of three, three and one."""
    trainer.model.eval()
    with torch.no_grad():
        losses = [
            trainer.compute_loss(trainer.model, support.batch(trainer, slice(i, i + 1), split="eval")).item()
            for i in range(7)
        ]
        of_batches = [mean(losses[:3]), mean(losses[3:6]), losses[6]]
    trainer._metrics["eval"].clear()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean(losses), rel=1e-5)
    assert not math.isclose(mean(of_batches), mean(losses), rel_tol=1e-3)


def test_a_loss_of_its_own_has_its_metrics_in_the_log(trainer):
    logs: list[dict[str, Any]] = trainer.state.log_history
    assert all("minor_dpo/clipped" in log for log in logs if "loss" in log)


def test_the_progress_bar_shows_tokens_per_second(tiny_model_dir, tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(token_rate, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    shown: list[str] = []
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.ranked_dataset(6), disable_tqdm=False, max_steps=3)
    bar = trainer_callback.tqdm
    monkeypatch.setattr(bar, "set_postfix_str", lambda self, text, refresh: shown.append(text))
    trainer.train()
    totals = [log["num_tokens"] for log in trainer.state.log_history if "num_tokens" in log][:3]
    assert shown == [f"{total / step:,.0f} tokens/s" for step, total in enumerate(totals, start=1)]
    assert trainer.train_tokens == totals[-1] > 0
