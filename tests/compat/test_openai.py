"""What `evaluation/judging/endpoint.py` expects of the openai client. If one fails, requests are miscounted or repeated
when they must not be."""

from __future__ import annotations

import openai
import pytest

from tests.evaluation.judge_server import Reply, no_waits, serve


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as server:
        yield server


def client(server, *, retries: int = 2, **hooks):
    http_client = openai.DefaultHttpxClient(event_hooks={name: [hook] for name, hook in hooks.items()})
    return openai.OpenAI(api_key="none", base_url=server.url, max_retries=retries, http_client=http_client)


def ask(made):
    messages = [{"role": "user", "content": "p|completion"}]
    return made.chat.completions.with_raw_response.create(model="m", messages=messages)


def test_request_hooks_see_retries_too(server, monkeypatch):
    """Else failed requests don't count against the cap."""
    no_waits(monkeypatch)
    seen = []
    server.misbehave = lambda number, question: Reply("{}", 500) if number < 2 else None
    ask(client(server, request=seen.append))
    assert len(seen) == len(server.requests) == 3


def test_a_hook_ends_the_call_by_an_error_that_is_no_exception(server):
    """Else a request beyond the cap is sent, or the client waits and tries again."""

    class Ended(BaseException):
        pass

    def end(request):
        raise Ended

    with pytest.raises(Ended):
        ask(client(server, request=end))
    assert server.requests == []


def test_a_response_hook_ends_the_call(server):
    """Else a request to an account without credit is repeated."""

    class Ended(BaseException):
        pass

    def end(response):
        response.read()
        raise Ended

    server.misbehave = lambda number, question: Reply("{}", 429)
    with pytest.raises(Ended):
        ask(client(server, response=end))
    assert len(server.requests) == 1


def test_a_wait_of_more_than_two_minutes_is_not_waited_for(server):
    """Else `LONGEST_WAIT` is wrong: the run hangs, or the message claims a wait that wasn't the reason."""
    server.misbehave = lambda number, question: Reply("{}", 429, {"Retry-After": "121"})
    with pytest.raises(openai.RateLimitError) as raised:
        ask(client(server))
    assert raised.value.response.headers["retry-after"] == "121"
    assert len(server.requests) == 1
