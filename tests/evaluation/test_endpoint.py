"""A judge behind an endpoint that misbehaves: the right verdicts in the end, and nothing paid for is lost."""

import json
import logging
import os
import signal
import sys
import threading

import pytest

from tests.evaluation.judge_server import TEMPLATE, Reply, body_of, no_waits, serve
from trl_dpo_ext.evaluation import JudgeError, SpendingCapError, apply_judge, get_judge
from trl_dpo_ext.evaluation.judging.endpoint_judges import EndpointJudge

KEY = "sk-this-must-never-be-seen-0123456789"
PROMPTS = ["p0", "p1", "p2", "p3"]
FIRSTS = ["long one", "s", "same", "xyz"]
SECONDS = ["short", "longer", "size", "xy"]
VERDICTS = [1.0, 0.0, 0.5, 1.0]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    no_waits(monkeypatch)
    with serve() as server:
        yield server


@pytest.fixture
def judge(server, tmp_path):
    (tmp_path / "template.yaml").write_text(TEMPLATE)

    def make(**options):
        settings = {"template": str(tmp_path / "template.yaml"), "cache": tmp_path / "verdicts.jsonl"}
        return EndpointJudge(
            "a-judge", **{**settings, "base_url": server.url, "progress": False, "timeout": 5, **options}
        )

    return make


def test_each_pair_is_asked_in_both_orders(server, judge):
    asking = judge()
    assert asking(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    expected = {*zip(PROMPTS, FIRSTS, SECONDS, strict=True), *zip(PROMPTS, SECONDS, FIRSTS, strict=True)}
    assert set(server.asked) == expected
    assert (asking.endpoint.requests, asking.endpoint.tokens) == (8, 80)
    assert all(request["model"] == "a-judge" for request in server.requests)
    assert all((request["temperature"], request["top_k"]) == (0, 1) for request in server.requests)
    assert server.keys == {f"Bearer {KEY}"}


def test_swapped_completions_give_the_opposite_and_cost_nothing_more(server, judge):
    verdicts = judge()(PROMPTS, FIRSTS, SECONDS)
    assert judge()(PROMPTS, SECONDS, FIRSTS) == [1 - verdict for verdict in verdicts]
    assert len(server.requests) == 8


def test_a_judge_that_always_prefers_the_first_place_says_tie(server, judge):
    server.misbehave = lambda number, question: Reply(body_of("Verdict: A"))
    assert judge()(PROMPTS, FIRSTS, SECONDS) == [0.5] * 4


def fails(times, reply):
    """Each question fails so many times before it is answered; the server's own count tells."""
    seen = {}

    def misbehave(number, question):
        seen[question] = seen.get(question, 0) + 1
        return reply if seen[question] <= times else None

    return misbehave


@pytest.mark.parametrize(
    "reply",
    [
        Reply('{"error": {"message": "slow down"}}', 429, {"Retry-After": "1"}),
        Reply('{"error": {"message": "oops"}}', 500),
        Reply("<html>Bad Gateway</html>", 502, {"Content-Type": "text/html"}),
        Reply("not json at all"),
        Reply('{"choices": []}'),
        Reply("[]"),
        Reply(body_of("They differ"), cut=True),
    ],
    ids=["429", "500", "502", "no JSON", "no message", "a list", "half a body"],
)
def test_failed_requests_are_repeated(server, judge, reply):
    server.misbehave = fails(2, reply)
    asking = judge(attempts=3)
    assert asking(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    assert asking.endpoint.requests == 24
    assert set(server.asked.values()) == {3}


def test_timeouts_are_repeated(server, judge):
    release = threading.Event()

    def hang_first(number, question):
        if number == 0:
            release.wait(20)

    server.misbehave = hang_first
    assert judge(timeout=0.3, workers=1)(PROMPTS[:1], FIRSTS[:1], SECONDS[:1]) == VERDICTS[:1]
    release.set()
    assert len(server.requests) == 3


def test_the_client_waits_as_long_as_the_endpoint_asks(server, judge, monkeypatch):
    waited = []
    monkeypatch.undo()  # of the fixture: with the client's own waits
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.time.sleep", waited.append)
    server.misbehave = fails(1, Reply("{}", 429, {"Retry-After": "7"}))
    judge()(PROMPTS[:1], FIRSTS[:1], SECONDS[:1])
    assert waited == [7.0, 7.0]


def test_an_endpoint_that_wants_a_long_wait_ends_the_run(server, judge):
    server.misbehave = lambda number, question: Reply("{}", 429, {"Retry-After": "3600"}) if number == 3 else None
    with pytest.raises(JudgeError, match=r"asks to wait 3600 s before .* 3 of 8 questions are settled"):
        judge(workers=1)(PROMPTS, FIRSTS, SECONDS)
    server.misbehave = lambda number, question: None
    assert judge()(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    assert len(server.requests) == 3 + 1 + 5


def test_answers_without_a_verdict(server, judge, tmp_path):
    # None, a half answer, and one that isn't in the form asked for: asked again, then given up for good.
    answers = [None, "They differ in", "Verdict is A"]
    server.misbehave = lambda number, question: (
        Reply(body_of(answers[server.asked[question] - 1])) if question[0] == "p0" else None
    )
    assert judge(attempts=3)(PROMPTS, FIRSTS, SECONDS) == [None, *VERDICTS[1:]]
    assert len(server.requests) == 2 * 3 + 6
    assert judge(attempts=3)(PROMPTS, FIRSTS, SECONDS) == [None, *VERDICTS[1:]]
    assert len(server.requests) == 2 * 3 + 6
    # The answers are there, so a better pattern needs no new ones.
    (tmp_path / "template.yaml").write_text(TEMPLATE.replace("Verdict: (A", "Verdict(?:: | is )(A"))
    assert judge(attempts=3)(PROMPTS, FIRSTS, SECONDS) == [0.5, *VERDICTS[1:]]
    assert len(server.requests) == 2 * 3 + 6


def test_the_last_verdict_of_an_answer_counts(server, judge):
    server.misbehave = lambda number, question: Reply(
        body_of("I first thought Verdict: B.\nVerdict: A" if question[1] == FIRSTS[0] else "Verdict: A?\nVerdict: B")
    )
    assert judge()(PROMPTS[:1], FIRSTS[:1], SECONDS[:1]) == [1.0]


@pytest.mark.parametrize(
    ("option", "message"), [({"max_requests": 5}, "cap of 5 requests"), ({"max_tokens": 45}, "cap of 45 tokens")]
)
def test_the_cap_stops_and_a_higher_one_goes_on(server, judge, option, message):
    with pytest.raises(SpendingCapError, match=f"{message} is reached .* 5 of 8 questions are settled"):
        judge(workers=1, **option)(PROMPTS, FIRSTS, SECONDS)
    assert len(server.requests) == 5
    assert judge()(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    assert set(server.asked.values()) == {1}


def test_failed_requests_count_against_the_cap(server, judge):
    server.misbehave = lambda number, question: Reply("{}", 500)
    with pytest.raises(SpendingCapError, match="cap of 3 requests"):
        judge(max_requests=3, attempts=10)(PROMPTS, FIRSTS, SECONDS)
    assert len(server.requests) == 3


def test_the_error_that_stopped_the_others_is_reported(server, judge, monkeypatch):
    # The first question fails and waits to be repeated until the others have reached the cap; then nothing is sent.
    asking = judge(max_requests=2, workers=2)
    first, waited = (PROMPTS[0], FIRSTS[0], SECONDS[0]), []

    def wait_for_the_stop(*arguments, **options):
        waited.append(asking.endpoint._stopped.wait(20))
        return 0.0

    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", wait_for_the_stop)
    server.misbehave = lambda number, question: Reply("{}", 500) if question == first else None
    with pytest.raises(SpendingCapError, match=r"cap of 2 requests is reached .* 1 of 8 questions are settled"):
        asking(PROMPTS, FIRSTS, SECONDS)
    assert waited == [True]
    assert (asking.endpoint.requests, len(server.requests)) == (2, 2)


def test_an_error_of_another_kind_is_not_covered_up(server, judge, monkeypatch):
    from trl_dpo_ext.evaluation.judging.verdict_cache import VerdictCache

    def full(self, key, answer, **facts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VerdictCache, "add", full)
    with pytest.raises(OSError, match="No space left"):
        judge()(PROMPTS, FIRSTS, SECONDS)


def test_killed_in_the_middle_no_verdict_is_asked_twice(server, judge):
    victim, forked = [], threading.Event()

    def kill_at_the_sixth(number, question):
        if number == 5:
            forked.wait(20)
            os.kill(victim[0], signal.SIGKILL)

    server.misbehave = kill_at_the_sixth
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            judge(workers=1)(PROMPTS, FIRSTS, SECONDS)
        finally:
            os._exit(7)
    victim.append(pid)
    forked.set()
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(server.requests) == 6
    assert judge()(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    # Only the one whose answer nobody received was asked again.
    assert sorted(server.asked.values()) == [1] * 7 + [2]


def test_a_half_written_line_is_cut_off(server, judge, tmp_path):
    judge(workers=1)(PROMPTS, FIRSTS, SECONDS)
    cache = tmp_path / "verdicts.jsonl"
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-5])
    assert judge()(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    assert len(server.requests) == 9
    assert [json.loads(line)["tokens"] for line in cache.read_text().splitlines()] == [10] * 8
    assert cache.read_bytes()[: len(whole.splitlines()[0])] == whole.splitlines()[0]


def test_a_damaged_cache_is_left_alone(server, judge, tmp_path):
    (tmp_path / "verdicts.jsonl").write_text('{"key": "a", "answer": "b"}\n{"key": \n')
    with pytest.raises(JudgeError, match=r"verdicts\.jsonl, line 2 is not an answer"):
        judge()
    assert (tmp_path / "verdicts.jsonl").read_text() == '{"key": "a", "answer": "b"}\n{"key": \n'
    assert server.requests == []


def test_two_runs_dont_share_a_cache(server, judge, tmp_path):
    found = []

    def second_run(number, question):
        if number == 0:
            with pytest.raises(JudgeError, match="in use by another process"):
                judge()(PROMPTS, FIRSTS, SECONDS)
            found.append(True)

    server.misbehave = second_run
    assert judge()(PROMPTS, FIRSTS, SECONDS) == VERDICTS
    assert found == [True]


def test_the_key_is_never_seen(server, judge, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    server.misbehave = lambda number, question: Reply(json.dumps({"error": {"message": f"wrong key {KEY}"}}), 401)
    with pytest.raises(JudgeError, match=r"refused: .*wrong key \*\*\*") as refused:
        judge()(PROMPTS, FIRSTS, SECONDS)
    assert refused.value.__cause__ is None
    server.misbehave = lambda number, question: Reply(f"no JSON, but {KEY}")
    with pytest.raises(JudgeError, match=r"failed 2 times.*but \*\*\*") as broken:
        judge(attempts=2)(PROMPTS, FIRSTS, SECONDS)
    server.misbehave = lambda number, question: Reply(body_of(f"Your key is {KEY}. Verdict: A"))
    asking = judge()
    asking(PROMPTS, FIRSTS, SECONDS)
    seen = f"{refused.value} {broken.value} {asking!r} {(tmp_path / 'verdicts.jsonl').read_text()} {caplog.text}"
    assert "Your key is ***" in seen
    assert KEY not in seen


def test_refusals_end_the_run_at_once(server, judge):
    server.misbehave = lambda number, question: Reply('{"error": {"message": "no such model"}}', 404)
    with pytest.raises(JudgeError, match=r"refused: .*no such model.* 0 of 8 questions are settled"):
        judge(workers=1)(PROMPTS, FIRSTS, SECONDS)
    assert len(server.requests) == 1
    spent = json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}})
    server.misbehave = lambda number, question: Reply(spent, 429)
    with pytest.raises(JudgeError, match="no credit left"):
        judge(workers=1)(PROMPTS, FIRSTS, SECONDS)
    assert len(server.requests) == 2


def test_nobody_listens(judge):
    with pytest.raises(JudgeError, match=r"failed 2 times\. The last failure: Connection error"):
        judge(base_url="http://127.0.0.1:9/v1", attempts=2)(PROMPTS, FIRSTS, SECONDS)


def test_by_name_and_the_same_text_is_never_asked(server, tmp_path):
    (tmp_path / "t.yaml").write_text(TEMPLATE)
    named = get_judge(
        "endpoint:org/model:8b", base_url=server.url, template=str(tmp_path / "t.yaml"), cache=tmp_path / "c.jsonl"
    )
    assert apply_judge(named, ["p", "q"], ["same", "longer"], ["same", "short"]) == [0.5, 1.0]
    assert {request["model"] for request in server.requests} == {"org/model:8b"}
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts=0 is out of range"),
        ({"max_requests": -1}, "max_requests=-1"),
        ({"template": "helpfull"}, "no template 'helpfull'. Did you mean 'helpful'"),
    ],
)
def test_bad_arguments(judge, options, message):
    with pytest.raises(JudgeError, match=message):
        judge(**options)


def test_a_folder_that_isnt_there(judge, tmp_path):
    with pytest.raises(JudgeError, match="can't be opened: No such file"):
        judge(cache=tmp_path / "nowhere" / "c.jsonl")


def test_no_key_and_no_package(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JudgeError, match="Set OPENAI_API_KEY"):
        EndpointJudge("m")
    EndpointJudge("m", base_url="http://127.0.0.1:9/v1")  # a server of one's own needs no key
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"pip install 'trl-dpo-ext\[judge\]'"):
        EndpointJudge("m")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_prompts_are_not_sent_on_to_another_host(server, judge, status):
    with serve() as other:
        server.misbehave = lambda number, question: Reply("", status, {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(JudgeError, match="another host, which would get the prompts"):
            judge()(PROMPTS, FIRSTS, SECONDS)
        assert not other.requests
        assert not other.keys


@pytest.mark.parametrize(
    "url",
    [
        *("", "nowhere", "http://", "http://[::1", "http://a:b", "http://a:99999999", "ftp://a/v1", "http://a b"),
        *("http://a\n", "file:///etc/passwd", "http://" + "a" * 70 + ".b"),
    ],
)
def test_a_malformed_address_is_refused_before_anything_is_asked(server, judge, url, monkeypatch):
    with pytest.raises(JudgeError, match=r"base_url=.* is no address"):
        judge(base_url=url)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(JudgeError, match="is no address"):
        judge(base_url=None)


def test_a_key_that_no_header_can_hold_is_refused(server, judge, monkeypatch):
    for key in ("sk-\n1", "sk-\u00e9"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(JudgeError, match="OPENAI_API_KEY holds a character"):
            judge()
