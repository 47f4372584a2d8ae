import io
import json
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model
from rich.console import Console

from tests.helpers import tiny_model, tiny_tokenizer
from trl_dpo_ext.evaluation import RewardError, compare, comparison_table, evaluate_policy, wilson

PROMPTS = ["the film was", "a", "[bold]two[/bold] sisters", "great actors"]


def length(prompts, completions):
    return [len(completion) for completion in completions]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def policy(tokenizer):
    return get_peft_model(
        tiny_model(tokenizer), LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )


def evaluate(policy, tokenizer, **options):
    return evaluate_policy(
        policy, tokenizer, PROMPTS, length, **{"max_new_tokens": 6, "progress": False, "batch_size": 2, **options}
    )


def test_an_evaluation_holds_what_it_says(policy, tokenizer):
    found = evaluate(policy, tokenizer, reference=policy.disable_adapter)
    assert found.samples.prompts == PROMPTS
    assert found.rewards == [len(text) for text in found.samples.completions]
    assert found.reward.mean == sum(found.rewards) / 4
    assert found.kl.mean != 0
    assert found.samples.temperature == 1
    assert all(len(ids) <= 6 for ids in found.samples.completion_ids)
    assert evaluate(policy, tokenizer).kl is None


def test_a_comparison_is_paired_and_survives_json(policy, tokenizer):
    with policy.disable_adapter():
        before = evaluate(policy, tokenizer)
    after = evaluate(policy, tokenizer, reference=policy.disable_adapter)
    record = json.loads(json.dumps(compare(before, after).as_dict()))
    assert sum(after.rewards) != sum(before.rewards)
    gains = [a - b for a, b in zip(after.rewards, before.rewards, strict=True)]
    assert record["difference"]["mean"] == pytest.approx(sum(gains) / 4)
    assert record["difference"]["level"] == 0.95
    wins, ties = sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains)
    assert (record["win_rate"]["wins"], record["win_rate"]["ties"]) == (wins, ties)
    assert record["win_rate"]["rate"] == wilson(wins + ties / 2, 4).as_dict()
    assert record["before"]["kl"] is None
    assert record["after"]["kl"].keys() == {"mean", "standard_error", "summed", "summed_standard_error"}
    assert [row["completion"] for row in record["after"]["samples"]] == after.samples.completions
    assert [row["reward"] for row in record["before"]["samples"]] == before.rewards


def test_what_does_not_pair_is_refused(policy, tokenizer):
    before = evaluate(policy, tokenizer)
    with pytest.raises(ValueError, match="differ in seed"):
        compare(before, evaluate(policy, tokenizer, seed=1))
    with pytest.raises(ValueError, match="differ in max_new_tokens"):
        compare(before, evaluate(policy, tokenizer, max_new_tokens=5))
    with pytest.raises(ValueError, match="differ in prompts"):
        compare(before, evaluate_policy(policy, tokenizer, PROMPTS[:2], length, max_new_tokens=6, progress=False))


def test_the_table_shows_the_numbers_and_the_texts(policy, tokenizer):
    with policy.disable_adapter():
        before = evaluate(policy, tokenizer)
    after = evaluate(policy, tokenizer, reference=policy.disable_adapter)
    comparison = compare(before, after)
    output = io.StringIO()
    Console(file=output, width=80).print(comparison_table(comparison, samples=3))
    text = output.getvalue()
    difference = comparison.difference
    assert f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]" in text
    assert f"{before.reward.mean:.2f} [{before.reward.low:.2f}, {before.reward.high:.2f}]" in text
    rate = comparison.win_rate.rate
    assert rate.mean != 0.5
    assert f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}]" in text
    assert f"{after.kl.mean:.2f} ± {after.kl.standard_error:.2f}" in text
    assert "[95 % interval]" in text
    assert "[bold]two" in text  # not read as markup; the rest is on the next line
    assert "great actors" not in text
    assert f"({after.rewards[2]:+.3f})" in text


def test_the_same_sample_is_a_tie_whatever_its_rewards_last_bits(policy, tokenizer):
    before = evaluate(policy, tokenizer)
    after = replace(before, rewards=[reward + 1e-7 for reward in before.rewards])
    assert compare(before, after).win_rate.verdicts == [0.5] * 4


def test_print(policy, tokenizer, capsys):
    found = evaluate(policy, tokenizer)
    compare(found, found).print()
    assert "mean reward" in capsys.readouterr().out


def test_bad_input_is_refused_before_sampling(policy, tokenizer):
    with pytest.raises(ValueError, match="at least two prompts, got 1"):
        evaluate_policy(policy, tokenizer, ["a"], length)
    with pytest.raises(RewardError, match="3 values for 4"):
        evaluate_policy(policy, tokenizer, PROMPTS, lambda p, c: [0.0] * 3, max_new_tokens=1, progress=False)
