"""A local stand-in for an OpenAI-compatible endpoint, which prefers long answers and can be told to misbehave."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATE = """
messages:
  - {role: system, content: You are a judge.}
  - {role: user, content: "{prompt}|{first}|{second}"}
verdict: 'Verdict: (A|B|TIE)'
request: {temperature: 0, top_k: 1}
"""
GRADE_TEMPLATE = r"""
messages: [{role: user, content: "{prompt}|{completion}"}]
grade: 'Score: (\S+)'
"""


def longer(prompt: str, first: str, second: str) -> str:
    verdict = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "TIE"
    return f"They differ in length.\nVerdict: {verdict}"


def graded(prompt: str, completion: str) -> str:
    return f"It is of some length.\nScore: {len(completion)}"


def body_of(text: str | None, tokens: int = 10) -> str:
    """A chat completion as the API sends it, as far as the judge reads it."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message}], "usage": {"total_tokens": tokens}})


@dataclass
class Reply:
    """What the server sends: a status, a body, headers; `cut` ends the connection in the middle of the body."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class Server:
    """What was asked of it, and what it is to do.

    Attributes:
        misbehave: (number of the request from 0, the question) -> a Reply instead of the right one, or None.
        asked: how often each question came.
        requests: bodies, in order.
        keys: authorization headers seen.
    """

    url: str = ""
    misbehave: Callable[[int, tuple[str, ...]], Reply | None] = lambda number, question: None
    asked: Counter = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, request: dict[str, Any], authorization: str) -> Reply:
        question = tuple(request["messages"][-1]["content"].split("|"))
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.asked[question] += 1
            self.keys.add(authorization)
        return self.misbehave(number, question) or Reply(body_of((longer if len(question) == 3 else graded)(*question)))


@contextmanager
def serve() -> Iterator[Server]:
    """A running server on 127.0.0.1."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.reply(request, self.headers["Authorization"])
            body = reply.body.encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if reply.cut else body)
            except OSError:  # whoever asked has gone
                pass

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def no_waits(monkeypatch: Any) -> None:
    """Let the client and `Endpoint` repeat requests at once."""
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    monkeypatch.setattr("trl_dpo_ext.evaluation.judging.endpoint.BROKEN_ANSWER_WAIT", 0.0)
