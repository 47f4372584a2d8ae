"""Judges made of rewards, what a verdict may be, and the files that say how to ask."""

import pytest

from tests.evaluation.judge_server import TEMPLATE
from trl_dpo_ext.evaluation import RewardError
from trl_dpo_ext.evaluation.judges import JudgeError, apply_judge, get_judge, reward_judge
from trl_dpo_ext.evaluation.templates import load_template


def length(prompts, completions):
    return [len(completion) for completion in completions]


def test_the_higher_reward_is_better():
    assert apply_judge(reward_judge(length), ["p"] * 3, ["aa", "a", "ab"], ["a", "aa", "ba"]) == [1.0, 0.0, 0.5]


def test_a_reward_by_name():
    judge = get_judge("vader")
    assert apply_judge(judge, ["The film is"] * 2, [" good", " bad"], [" bad", " good"]) == [1.0, 0.0]
    with pytest.raises(RewardError, match="Unknown reward 'vadre'"):
        get_judge("vadre")
    with pytest.raises(JudgeError, match="'vader' is a reward, which takes no cache, template"):
        get_judge("vader", template="helpful", cache="x")


def test_verdicts_are_checked():
    for verdicts, message in (
        ([1.0], "1 verdicts for 2 pairs"),
        ([1.0, 0.7], "verdict of pair 2 is 0.7"),
        (["A", 1.0], "verdict of pair 0 is 'A'"),
    ):
        with pytest.raises(JudgeError, match=message):
            apply_judge(lambda *_, v=verdicts: v, ["p"] * 3, ["a", "same", "b"], ["c", "same", "d"])
    with pytest.raises(ValueError, match="2 prompts, but 1 and 2 completions"):
        apply_judge(reward_judge(length), ["p", "q"], ["a"], ["b", "c"])


@pytest.mark.parametrize("name", ["helpful", "summary"])
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A says more.\nVerdict: A", 1.0),
        ("Both are fine.\n**Verdict:** B", 0.0),
        ("verdict: tie\n", 0.5),
        ("**Verdict: TIE**", 0.5),
        ("Verdict: A\nNo, wait.\nVerdict: B.", 0.0),
        ("Answer A is better.", None),
        ("Verdict: Answer", None),
        ("", None),
    ],
)
def test_packaged_templates_read_answers(name, answer, verdict):
    assert load_template(name).read(answer) == verdict


@pytest.mark.parametrize("name", ["helpful", "summary"])
def test_packaged_templates_hold_the_texts(name):
    (message,) = load_template(name).ask("the PROMPT {second}", "the FIRST {prompt}", "the SECOND")
    content = message["content"]
    # Each text once and untouched, whatever braces it holds; the first one is A.
    assert [content.count(text) for text in ("the PROMPT {second}", "the FIRST {prompt}", "the SECOND")] == [1, 1, 1]
    assert content.index("PROMPT") < content.index("_a>") < content.index("FIRST") < content.index("SECOND")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("messages: [", "can't be read"),
        ("- a", "expected the keys messages, verdict"),
        ("messages: []", "expected the keys messages, verdict"),
        (TEMPLATE + "extra: 1", "unknown key 'extra'"),
        (TEMPLATE.replace("content: You", "text: You"), "no list of role and content"),
        (TEMPLATE.replace("{second}", ""), r"no message holds \{second\}"),
        (TEMPLATE.replace("(A|B|TIE)", "(A"), "no regular expression"),
        (TEMPLATE.replace("(A|B|TIE)", "A"), "no group"),
        (TEMPLATE.replace("top_k: 1", "n: 2"), "can't set n"),
        (TEMPLATE.replace("{temperature: 0, top_k: 1}", "[1]"), "is no mapping"),
    ],
)
def test_a_template_of_ones_own_is_checked(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(JudgeError, match=message):
        load_template(str(tmp_path / "mine.yaml"))
