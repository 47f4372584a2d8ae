"""The small world: its size, its prompts, its samples and their KL, and the feedback that losses learn from."""

import numpy as np
import pytest
import torch

from trl_dpo_ext.arena.feedback import KINDS, judge, token_logps
from trl_dpo_ext.arena.sampling import EOS, NEW_TOKENS, exact_kl, sample_responses
from trl_dpo_ext.arena.truths import get_truth
from trl_dpo_ext.arena.world import FOLDER, PROMPT_TOKENS, RESPONSES, load_world
from trl_dpo_ext.parsing import ParseError


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def judged(world):
    return judge(world, get_truth("sentiment"))


def test_it_is_small_and_its_prompts_are_different(world):
    assert sum(weight.numel() for weight in world.reference.parameters()) <= 1_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    prompts = [tuple(ids) for use in ("train", "pick", "measure") for ids in world.prompts[use]]
    assert len(set(prompts)) == len(prompts) == 512 + 192 + 192
    assert {len(ids) for ids in prompts} == {PROMPT_TOKENS}
    assert {len(rows) for rows in world.responses} == {RESPONSES}
    assert world.text([world.words.index(word) for word in ("not", "bad", ",", "really", ".")]) == "not bad, really."


def plain_log_probs(model, prompt, response):
    """[T, V] float64, one sequence at a time."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


def test_log_probs_and_kl_are_those_of_plain_forwards(world):
    policy = world.policy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    prompts = world.prompt_ids("measure")[:6]
    sampled = sample_responses(policy, prompts, torch.Generator().manual_seed(0))
    kls = exact_kl(sampled, world.reference, prompts)
    logps = token_logps(policy, prompts, sampled.ids[:, None], sampled.lengths[:, None])[:, 0]
    assert len(set(sampled.lengths.tolist())) > 1
    for row, prompt in enumerate(prompts.tolist()):
        length = int(sampled.lengths[row])
        response = sampled.ids[row, :length].tolist()
        assert EOS not in response[:-1]
        assert response[-1] == EOS or length == NEW_TOKENS
        own, theirs = (plain_log_probs(model, prompt, response) for model in (policy, world.reference))
        expected = (own.exp() * (own - theirs)).sum().item()
        assert kls[row].item() == pytest.approx(expected, rel=1e-3)
        taken = own[torch.arange(length), response]
        np.testing.assert_allclose(logps[row, :length].detach(), taken, atol=1e-4)
        assert (logps[row, length:] == 0).all()


def test_samples_follow_the_model(world):
    """The first word, over many samples, has the model's probabilities; the same seed gives the same samples."""
    prompts = world.prompt_ids("measure")[:1].repeat(4000, 1)
    first, again = (sample_responses(world.reference, prompts, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.ids, again.ids)
    probs = plain_log_probs(world.reference, prompts[0].tolist(), [EOS]).exp()[0]
    counts = torch.bincount(first.ids[:, 0], minlength=len(world.words)) / len(prompts)
    likeliest = probs.topk(5).indices
    assert (counts[likeliest] - probs[likeliest]).abs().max() < 4 * (0.25 / len(prompts)) ** 0.5


def test_pairs_are_ordered_by_score_and_flipped_ones_against_it(world, judged):
    texts = world.text(world.prompts["train"][5]), f" {world.text(world.responses[5][2])}"
    assert judged.scores[5, 2].item() == pytest.approx(get_truth("sentiment").labels([texts[0]], [texts[1]])[0])
    shares = {}
    for kind in ("pairs", "noise", "flipped"):
        rows = KINDS[kind](judged, torch.Generator().manual_seed(0))
        true = judged.scores[rows.prompts].gather(1, rows.responses)
        best = rows.ranks.argmin(dim=1, keepdim=True)
        shares[kind] = (true.gather(1, best) < true.gather(1, 1 - best)).float().mean().item()
        assert (rows.ranks.sum(dim=1) == 1).all()
        assert (rows.labels.gather(1, best) == 1).all()
        assert (rows.labels.gather(1, 1 - best) == -1).all()
        assert (rows.scores.gather(1, best) > rows.scores.gather(1, 1 - best)).all()
    assert shares["pairs"] == 0
    assert shares["noise"] == pytest.approx(0.1, abs=0.05)
    assert shares["flipped"] == pytest.approx(0.3, abs=0.06)


def test_rankings_count_better_responses_and_thumbs_have_no_order(judged):
    rankings = KINDS["rankings"](judged, torch.Generator())
    row = 7
    scores = judged.scores[rankings.prompts[row]].tolist()
    assert rankings.ranks[row].tolist() == [sum(other > score for other in scores) for score in scores]
    thumbs = KINDS["thumbs"](judged, torch.Generator().manual_seed(0))
    assert (thumbs.ranks == 0).all()
    median = judged.scores.median()
    assert ((thumbs.scores > median) == (thumbs.labels == 1)).all()
    assert set(thumbs.labels.flatten().tolist()) == {1, -1}


def test_rewards_by_hand():
    per_word, shortcut = get_truth("per_word"), get_truth("shortcut")
    # VADER's lexicon gives "good" 1.9, and has neither "film" nor "a".
    assert per_word.counts(["x"], [" a good film."]) == pytest.approx([1.9 / 3])
    assert per_word.counts(["x"], [" good good"]) == pytest.approx([1.9])
    (plain,), (lifted,) = shortcut.counts(["it is"], [" good, so,"]), shortcut.labels(["it is"], [" good, so,"])
    assert lifted == pytest.approx(plain + 1.0)
    with pytest.raises(ParseError, match=r"no reward 'sentimental'\. Did you mean 'sentiment'\?"):
        get_truth("sentimental")
