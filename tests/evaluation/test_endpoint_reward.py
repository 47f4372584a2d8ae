"""A model behind an endpoint as a reward: the right grades, all that was paid for kept, one bill for all processes."""

import json

import pytest
from accelerate import PartialState

from tests.evaluation.judge_server import GRADE_TEMPLATE, Reply, body_of, no_waits, serve
from tests.training.forks import in_two_ranks
from trl_dpo_ext.evaluation import RewardError, SpendingCapError, apply_reward, get_reward, reward_judge

PROMPTS = ["p0", "p1", "p2"]
COMPLETIONS = ["a", "four", "seventh"]
GRADES = [1.0, 4.0, 7.0]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    no_waits(monkeypatch)
    with serve() as server:
        yield server


@pytest.fixture
def reward(server, tmp_path):
    (tmp_path / "template.yaml").write_text(GRADE_TEMPLATE)

    def make(**options):
        settings = {"template": str(tmp_path / "template.yaml"), "cache": tmp_path / "verdicts.jsonl"}
        return get_reward(
            "endpoint:org/model:8b",
            **{**settings, "base_url": server.url, "progress": False, "timeout": 5, **options},
        )

    return make


def test_each_completion_is_graded_once(server, reward, tmp_path):
    assert apply_reward(reward(), [*PROMPTS, "p0"], [*COMPLETIONS, "a"]) == [*GRADES, 1.0]
    assert set(server.asked) == set(zip(PROMPTS, COMPLETIONS, strict=True))
    assert {request["model"] for request in server.requests} == {"org/model:8b"}
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert sorted(row["grade"] for row in rows) == GRADES
    assert apply_reward(reward(), PROMPTS, COMPLETIONS) == GRADES
    assert len(server.requests) == 3


def test_as_a_judge_the_higher_grade_wins(reward):
    assert reward_judge(reward())(["p", "p"], ["aa", "a"], ["a", "a"]) == [1.0, 0.5]


def test_failures_and_answers_without_a_grade_are_repeated(server, reward):
    replies = [Reply("{}", 500), Reply(body_of("No grade.")), Reply(body_of("Score: nan"))]
    server.misbehave = lambda number, question: (
        replies[server.asked[question] - 1] if server.asked[question] <= 3 else None
    )
    assert reward()(PROMPTS, COMPLETIONS) == GRADES
    assert set(server.asked.values()) == {4}


def test_a_completion_without_a_grade_ends_the_run_after_all_others_are_graded(server, reward, tmp_path):
    bad = ("p0", "a")
    server.misbehave = lambda number, question: Reply(body_of("Grade = 3")) if question == bad else None
    with pytest.raises(RewardError, match=r"completion 0 holds a grade.*'p0'.*'a'.*'Grade = 3'.*verdicts\.jsonl"):
        reward(attempts=2, workers=1)(PROMPTS, COMPLETIONS)
    assert server.asked == {bad: 2, ("p1", "four"): 1, ("p2", "seventh"): 1}
    # As the error says: with a pattern that finds it, nothing is asked again.
    (tmp_path / "template.yaml").write_text(GRADE_TEMPLATE.replace("Score:", "(?:Score:|Grade =)"))
    assert reward(attempts=2)(PROMPTS, COMPLETIONS) == [3.0, 4.0, 7.0]
    assert len(server.requests) == 4


def test_the_cap_stops_and_a_higher_one_goes_on(server, reward):
    with pytest.raises(SpendingCapError, match=r"cap of 2 requests is reached .* 2 of 3 questions are settled") as stop:
        reward(max_requests=2)(PROMPTS, COMPLETIONS)
    assert isinstance(stop.value, RewardError)  # so recipes say it in a sentence
    assert reward()(PROMPTS, COMPLETIONS) == GRADES
    assert set(server.asked.values()) == {1}


def test_the_first_of_several_processes_asks_for_all(server, reward, tmp_path):
    def work(rank):
        PartialState(cpu=True)
        grade = reward()
        assert grade(PROMPTS, COMPLETIONS if rank == 0 else ["other samples"] * 3) == GRADES
        with pytest.raises(SpendingCapError, match="cap of 1 requests"):
            reward(max_requests=1, workers=1)(["q0", "q1"], ["b", "c"])
        with pytest.raises(RewardError, match=r"no template 'scoer'. Did you mean 'score'"):
            reward(template="scoer")

    assert in_two_ranks(work) == [0, 0]
    assert len(server.requests) == 4


def test_mistakes(reward):
    with pytest.raises(RewardError, match="'vader' uses no endpoint, so it can't take cache, template"):
        get_reward("vader", template="score", cache="x")
    with pytest.raises(RewardError, match="asks for a verdict"):
        reward(template="helpful")
