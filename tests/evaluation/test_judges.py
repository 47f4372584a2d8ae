"""Judges made of rewards, what a verdict may be, and the files that say how to ask."""

import pytest

from tests.evaluation.judge_server import GRADE_TEMPLATE, TEMPLATE
from trl_dpo_ext.evaluation import JudgeError, RewardError, apply_judge, get_judge, reward_judge
from trl_dpo_ext.evaluation.judging.templates import GRADE, VERDICT, load_template


def length(prompts, completions):
    return [len(completion) for completion in completions]


def test_the_higher_reward_is_better():
    assert apply_judge(reward_judge(length), ["p"] * 3, ["aa", "a", "ab"], ["a", "aa", "ba"]) == [1.0, 0.0, 0.5]


def test_a_reward_by_name():
    judge = get_judge("vader")
    assert apply_judge(judge, ["The film is"] * 2, [" good", " bad"], [" bad", " good"]) == [1.0, 0.0]
    with pytest.raises(RewardError, match="Unknown reward 'vadre'"):
        get_judge("vadre")
    with pytest.raises(JudgeError, match="'vader' is a reward, so it can't take cache, template"):
        get_judge("vader", template="helpful", cache="x")


def test_verdicts_are_checked():
    for verdicts, message in (
        ([1.0], "1 verdicts for 2 pairs"),
        ([1.0, 0.7], "verdict on pair 2 is 0.7"),
        (["A", 1.0], "verdict on pair 0 is 'A'"),
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


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("It answers the question.\nScore: 8", 8.0),
        ("**Score: 8/10**", 8.0),
        ("**Score:** 10", 10.0),
        ("score:7.5.", 7.5),
        ("Score: **3**", 3.0),
        ("Score: 2\nNo, wait.\nScore: 9", 9.0),
        ("Score: 85", None),
        ("Score: 10.5", None),
        ("Score: 100", None),
        ("Score: 0", None),
        ("Score: -3", None),
        ("I would say 8.", None),
        ("", None),
    ],
)
def test_the_packaged_grade_is_a_number_from_1_to_10(answer, grade):
    assert load_template("score", GRADE).read(answer) == grade


@pytest.mark.parametrize("answer", ["Score: nan", "Score: -inf", "Score: high", "Score: 1e999", "none"])
def test_a_grade_is_a_finite_number_whatever_the_pattern_finds(tmp_path, answer):
    (tmp_path / "mine.yaml").write_text(GRADE_TEMPLATE)
    template = load_template(str(tmp_path / "mine.yaml"), GRADE)
    assert template.read(answer) is None
    assert template.read("Score: -2.5e1") == -25.0


def test_templates_of_the_other_kind():
    with pytest.raises(JudgeError, match="'score' asks for a grade, for a reward; a judge of pairs needs one"):
        load_template("score", VERDICT)
    with pytest.raises(RewardError, match="'helpful' asks for a verdict, for a judge of pairs; a reward needs"):
        load_template("helpful", GRADE)


def test_the_packaged_grading_template_holds_the_texts():
    (message,) = load_template("score", GRADE).ask("the PROMPT {completion}", "the COMPLETION {prompt} {first}")
    content = message["content"]
    assert [content.count(text) for text in ("the PROMPT {completion}", "the COMPLETION {prompt} {first}")] == [1, 1]
    assert content.index("PROMPT") < content.index("COMPLETION")


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
        ("- a", "holds a list, expected a mapping"),
        ("messages: []", "the key 'verdict' is missing; |no message contains.*the key 'verdict' is missing"),
        (TEMPLATE + "extra: 1", "unknown key 'extra'"),
        (
            TEMPLATE.replace("content: You", "text: You"),
            r"'messages\.0\.content' is missing; unknown key 'messages\.0\.text'",
        ),
        (TEMPLATE.replace("{second}", ""), r"messages: no message contains \{second\}"),
        (TEMPLATE.replace("(A|B|TIE)", "(A"), "verdict: not a regular expression"),
        (TEMPLATE.replace("(A|B|TIE)", "A"), "verdict: the pattern has no group"),
        (TEMPLATE.replace("top_k: 1", "n: 2"), "request: can't set n"),
        (TEMPLATE.replace("{temperature: 0, top_k: 1}", "[1]"), "request: Input should be a valid dictionary"),
    ],
)
def test_a_template_of_ones_own_is_checked(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(JudgeError, match=message):
        load_template(str(tmp_path / "mine.yaml"))
