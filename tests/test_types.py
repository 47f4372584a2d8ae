"""The input of a loss: shapes, derived values, missing inputs, and pairs against brute force."""

import itertools
import random

import pytest
import torch

from trl_dpo_ext import PreferencePairs, RankedResponses
from trl_dpo_ext.testing import random_rankings
from trl_dpo_ext.types import PAIRINGS, MissingInputError, MissingReferenceError, pair_indices


def by_hand(ranks: list[int | None], pairing: str, ties: bool) -> list[tuple[int, int]]:
    """The pairs of one prompt; None is a response that isn't there."""
    there = [i for i, rank in enumerate(ranks) if rank is not None]
    levels = sorted({ranks[i] for i in there})
    better = [(i, j) for i, j in itertools.permutations(there, 2) if ranks[i] < ranks[j]]
    tied = [(i, j) for i, j in itertools.combinations(there, 2) if ranks[i] == ranks[j]]
    best = [(i, j) for i, j in tied if ranks[i] == levels[0]]
    if pairing == "all":
        chosen, chosen_ties = better, tied
    elif pairing == "best_vs_rest":
        chosen, chosen_ties = [(i, j) for i, j in better if ranks[i] == levels[0]], best
    elif pairing == "best_vs_worst":
        chosen = [(i, j) for i, j in better if ranks[i] == levels[0] and ranks[j] == levels[-1]]
        chosen_ties = best if len(levels) == 1 else []
    else:
        chosen = [(i, j) for i, j in better if levels.index(ranks[j]) == levels.index(ranks[i]) + 1]
        chosen_ties = tied
    return sorted(chosen + (chosen_ties if ties else []))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairs_against_brute_force(pairing, ties):
    randomness = random.Random(0)
    for count in range(1, 7):
        rows = [[randomness.choice([None, 0, 1, 2, 3, 17]) for _ in range(count)] for _ in range(150)]
        rows += [[None] * count, [3] * count, list(range(count)), list(range(count))[::-1]]
        ranks = torch.tensor([[randomness.randint(-9, 99) if r is None else r for r in row] for row in rows])
        mask = torch.tensor([[r is not None for r in row] for row in rows])
        got = list(zip(*(t.tolist() for t in pair_indices(ranks, mask, pairing, ties)), strict=True))
        assert got == [(b, i, j) for b, row in enumerate(rows) for i, j in by_hand(row, pairing, ties)]


def test_an_unknown_pairing_names_the_known_ones():
    with pytest.raises(
        ValueError, match="Unknown pairing 'every'; expected one of all, best_vs_rest, adjacent, best_vs_w"
    ):
        pair_indices(torch.zeros(1, 2).long(), torch.ones(1, 2).bool(), "every")


def test_a_pair_takes_everything_of_its_responses():
    data = random_rankings(prompts=2, responses=3).replace(
        weights=torch.rand(2, 3), batch_mean=torch.tensor(1.0), running_mean=torch.tensor(2.0)
    )
    pairs = data.pairs("all", ties=True)
    prompt, better, worse = pair_indices(data.ranks, data.mask, "all", True)
    assert len(pairs) == 6
    assert torch.equal(pairs.prompts, prompt)
    for side, column in (("chosen", better), ("rejected", worse)):
        for name in ("logps", "lengths", "scores", "weights", "token_logps"):
            assert torch.equal(getattr(pairs, f"{side}_{name}"), getattr(data, name)[prompt, column])
        assert torch.equal(getattr(pairs, f"ref_{side}_logps"), data.ref_logps[prompt, column])
        assert torch.equal(getattr(pairs, f"ref_{side}_token_logps"), data.ref_token_logps[prompt, column])
    assert (pairs.batch_mean, pairs.running_mean) == (data.batch_mean, data.running_mean)
    assert pairs.ties.tolist() == [False] * 6
    assert data.pairs("all").ties is None
    bare = RankedResponses(data.logps, None, data.lengths, data.ranks, data.mask).pairs()
    for name in (
        "ref_chosen_logps",
        "chosen_scores",
        "chosen_weights",
        "rejected_token_logps",
        "ref_chosen_token_logps",
    ):
        assert getattr(bare, name) is None


def test_ties_are_marked():
    data = random_rankings(prompts=1, responses=3).replace(ranks=torch.tensor([[0, 0, 1]]))
    pairs = data.pairs("all", ties=True)
    assert pairs.ties.tolist() == [True, False, False]


def test_derived_values():
    chosen, rejected = torch.tensor([-6.0, -1.0]), torch.tensor([-8.0, -3.0])
    pairs = PreferencePairs(
        chosen, rejected, chosen - 1, rejected - 3, torch.tensor([3, 0]), torch.tensor([4, 2]),
        chosen_scores=chosen, rejected_scores=rejected,
    )  # fmt: skip
    assert pairs.chosen_log_ratios.tolist() == [1, 1]
    assert pairs.rejected_log_ratios.tolist() == [3, 3]
    assert pairs.margins.tolist() == [-2, -2]
    assert pairs.chosen_mean_logps.tolist() == [-2, -1], "an empty response counts as one token"
    assert pairs.rejected_mean_logps.tolist() == [-2, -1.5]
    assert pairs.score_margins.tolist() == [2, 2]
    assert pairs.required("chosen_scores") is chosen
    row, ranks = chosen.unsqueeze(0), torch.zeros(1, 2).long()
    ranked = RankedResponses(row, rejected.unsqueeze(0), torch.tensor([[3, 0]]), ranks, ranks == 0, scores=row)
    assert ranked.log_ratios.tolist() == [[2, 2]]
    assert ranked.mean_logps.tolist() == [[-2, -1]]
    assert ranked.required_scores().tolist() == [[-6, -1]]
    assert len(ranked) == 1
    assert ranked.replace(scores=None).scores is None


def test_missing_inputs_are_named():
    data = random_rankings().replace(ref_logps=None, scores=None)
    pairs = data.pairs()
    for read in (
        lambda: data.log_ratios,
        lambda: pairs.chosen_log_ratios,
        lambda: pairs.rejected_log_ratios,
        lambda: pairs.margins,
    ):
        with pytest.raises(MissingReferenceError, match="there are no reference log-probs"):
            read()
    for read in (data.required_scores, lambda: pairs.score_margins):
        with pytest.raises(MissingInputError, match=r"reads scores, but got none\. Declare the need"):
            read()
    with pytest.raises(MissingInputError, match="reads running_mean, but got none"):
        pairs.required("running_mean")


def test_shapes_are_checked_where_tensors_enter():
    data = random_rankings(prompts=2, responses=3)
    for name in ("ref_logps", "lengths", "ranks", "mask", "scores", "weights"):
        with pytest.raises(ValueError, match=rf"RankedResponses.{name} has shape \(2, 4\), expected \(2, 3\)\."):
            data.replace(**{name: torch.zeros(2, 4)})
    for name in ("token_logps", "ref_token_logps"):
        with pytest.raises(
            ValueError, match=rf"RankedResponses.{name} has shape \(2, 4, 5\), expected \(2, 3\) \+ \[tokens\]\."
        ):
            data.replace(**{name: torch.zeros(2, 4, 5)})
    with pytest.raises(ValueError, match=r"RankedResponses.logps has shape \(2,\), expected \[B, K\]\."):
        RankedResponses(*[torch.zeros(2)] * 5)
    with pytest.raises(ValueError, match=r"RankedResponses.mask has dtype torch.int64, expected torch.bool\."):
        data.replace(mask=torch.zeros(2, 3, dtype=torch.int64))
    pairs = data.pairs()
    for name in ("rejected_logps", "ref_chosen_logps", "chosen_lengths", "rejected_scores", "ties", "prompts"):
        with pytest.raises(ValueError, match=rf"PreferencePairs.{name} has shape \(5,\), expected \(6,\)\."):
            pairs.replace(**{name: torch.zeros(5)})
    with pytest.raises(
        ValueError, match=r"PreferencePairs.chosen_token_logps has shape \(5, 9\), expected \(6,\) \+ \[tokens\]\."
    ):
        pairs.replace(chosen_token_logps=torch.zeros(5, 9))
    with pytest.raises(ValueError, match=r"PreferencePairs.chosen_logps has shape \(2, 1\), expected \[N\]\."):
        PreferencePairs(*[torch.zeros(2, 1)] * 6)
