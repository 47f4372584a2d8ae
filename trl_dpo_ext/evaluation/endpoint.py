"""Questions to a model behind any OpenAI-compatible endpoint: retries, a cache of answers, a cap on spending."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from .judges import EndpointError
from .templates import Template
from .verdicts import VerdictCache

LONGEST_WAIT = 60.0  # seconds


class SpendingCapError(EndpointError):
    """The cap on requests or tokens is reached. What was answered is in the cache; with a higher cap it goes on."""


class Answer(NamedTuple):
    """What came of a question.

    Attributes:
        value: verdict or grade, or None where no answer holds one.
        text: of the answer that holds it, or of the last one.
    """

    value: float | None
    text: str


class Endpoint:
    """Asks a model questions made from a template, and reads the answers.

    Every answer is on the disk before it is used, so a run that is killed goes on where it was: no question that has
    a verdict or a grade is asked again. A question is known by model, request and messages; the address is no part of
    it. Answers without a value are kept too, and the question is asked again up to `attempts` times; then there is
    none.

    Args:
        model: as the endpoint calls it.
        template: of the questions.
        cache: JSONL file of the answers.
        base_url: of the endpoint; None takes OPENAI_BASE_URL, or OpenAI's own. The key is taken from OPENAI_API_KEY;
            a server of your own may need none.
        max_requests: requests sent at most by this object, failed ones included; None for no cap.
        max_tokens: prompt and answer tokens spent at most, as the endpoint counts them. Known only after each
            answer, so up to `workers` answers more may be spent.
        attempts: of a request that fails (timeout, 429, 5xx, broken answer), and of a question without a value.
        timeout: of a request, seconds.
        workers: requests at the same time. As many answers, not yet received, can be lost by a kill.
        progress: show a progress bar.

    Attributes:
        requests: sent so far.
        tokens: spent so far.

    Raises:
        EndpointError: openai isn't installed, no key, an unusable cache or argument.
    """

    def __init__(
        self,
        model: str,
        template: Template,
        *,
        cache: str | Path = "verdicts.jsonl",
        base_url: str | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        attempts: int = 5,
        timeout: float = 60.0,
        workers: int = 4,
        progress: bool = True,
    ) -> None:
        for name, value in (
            ("max_requests", max_requests),
            ("max_tokens", max_tokens),
            ("attempts", attempts),
            ("timeout", timeout),
            ("workers", workers),
        ):
            if value is not None and not value > 0:
                raise EndpointError(f"{name}={value!r} is out of range, expected more than 0.")
        self.model, self.template, self.cache = model, template, Path(cache)
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.attempts, self.workers, self.progress = attempts, workers, progress
        self.requests = self.tokens = 0
        with VerdictCache(self.cache):  # what is wrong with it is said before anything is sampled
            pass
        self._client, self._key = _client(base_url, timeout)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def ask(self, questions: Iterable[Sequence[str]]) -> list[Answer]:
        """Return what came of each question; the same one is asked once.

        Args:
            questions: the texts of each, in the order of the template's places.

        Raises:
            SpendingCapError: the cap is reached.
            EndpointError: the endpoint refuses, or doesn't answer.
        """
        messages = [self.template.ask(*texts) for texts in questions]
        keys = [self._key_of(m) for m in messages]
        with VerdictCache(self.cache) as cache:
            self._settle_all(dict(zip(keys, messages, strict=True)), cache)
            return [self._answer(cache, key) for key in keys]

    def _settle_all(self, questions: dict[str, list[dict[str, str]]], cache: VerdictCache) -> None:
        unsettled = {key: messages for key, messages in questions.items() if not self._settled(cache, key)}
        self._error = None
        self._stopped.clear()
        with (
            tqdm(total=len(unsettled), desc="judging", unit="question", disable=not self.progress) as bar,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            # Requests under way are waited for at the end of this block, whatever ends it: their answers are paid for
            # and go into the cache.
            try:
                futures = [pool.submit(self._settle, key, messages, cache) for key, messages in unsettled.items()]
                for future in as_completed(futures):
                    bar.update(future.result())
            except BaseException as error:  # an interrupt; a worker's error is in self._error
                self._stop(error)
        if self._error is None:
            return
        if isinstance(self._error, EndpointError):
            left = sum(not self._settled(cache, key) for key in questions)
            raise type(self._error)(
                f"{self._error} {len(questions) - left} of {len(questions)} questions are settled and in "
                f"{str(self.cache)!r}; run again to go on from there."
            )
        raise self._error

    def _settle(self, key: str, messages: list[dict[str, str]], cache: VerdictCache) -> bool:
        """Ask until there is a value or no attempt is left; whether that was reached. Never raises: see `_stop`."""
        try:
            while not self._settled(cache, key):
                if self._stopped.is_set():
                    return False
                answer, tokens = self._ask(messages)
                facts = {"model": self.model, "template": self.template.name, "tokens": tokens}
                cache.add(key, answer, **facts, **{self.template.kind.name: self.template.read(answer)})
        except _StoppedError:
            return False
        except BaseException as error:
            self._stop(error)
            return False
        return True

    def _stop(self, error: BaseException) -> None:
        """Let the other workers end; the first error is the one that is reported."""
        with self._lock:
            self._error = self._error or error
        self._stopped.set()

    def _settled(self, cache: VerdictCache, key: str) -> bool:
        return self._answer(cache, key).value is not None or len(cache.answers(key)) >= self.attempts

    def _answer(self, cache: VerdictCache, key: str) -> Answer:
        # Read anew, so that a corrected pattern finds its values in answers that are there already.
        read = [Answer(self.template.read(text), text) for text in cache.answers(key)]
        return next((answer for answer in read if answer.value is not None), read[-1] if read else Answer(None, ""))

    def _key_of(self, messages: list[dict[str, str]]) -> str:
        asked = json.dumps([self.model, self.template.request, messages], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _ask(self, messages: list[dict[str, str]]) -> tuple[str, int]:
        """Return an answer and the tokens it cost; failed requests are repeated, unless the run is stopped."""
        import openai

        problem: Exception | None = None
        headers: Mapping[str, str] = {}
        for attempt in range(self.attempts):
            self._count_request()
            try:
                response = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages, extra_body=self.template.request
                )
                answer, tokens = _read(response.text)
                with self._lock:
                    self.tokens += tokens
                return self._scrubbed(answer), tokens
            except (openai.APIConnectionError, _BrokenAnswerError) as error:
                problem, headers = error, {}
            except openai.APIStatusError as error:
                problem, headers = error, error.response.headers
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise EndpointError(self._scrubbed(f"The endpoint refused: {error}.")) from None
                if error.code == "insufficient_quota":
                    raise EndpointError(self._scrubbed(f"The account has nothing left to spend: {error}.")) from None
            seconds = wait_before(attempt + 1, headers)
            if seconds > LONGEST_WAIT:
                raise EndpointError(f"The endpoint asks to wait {seconds:g} s.")
            if attempt + 1 < self.attempts and self._stopped.wait(seconds):
                raise _StoppedError
        raise EndpointError(self._scrubbed(f"The endpoint failed {self.attempts} times, the last time: {problem}."))

    def _count_request(self) -> None:
        with self._lock:
            for spent, cap, unit in (
                (self.requests, self.max_requests, "requests"),
                (self.tokens, self.max_tokens, "tokens"),
            ):
                if cap is not None and spent >= cap:
                    raise SpendingCapError(f"The cap of {cap} {unit} is reached ({spent} spent).")
            self.requests += 1

    def _scrubbed(self, text: str) -> str:
        """Return what an endpoint said without the key, which some repeat."""
        return text.replace(self._key, "***") if self._key else text


class _StoppedError(Exception):
    """Another worker's error ended the run while this one waited to repeat a request."""


class _BrokenAnswerError(Exception):
    """A response that is no answer: not JSON, or without a message."""


def wait_before(attempt: int, headers: Mapping[str, str]) -> float:
    """Return seconds to wait before an attempt (1 for the second): what Retry-After says, or 1, 2, 4, ... with jitter.

    >>> wait_before(1, {"retry-after": "7"})
    7.0
    """
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):  # not given, or given as a date
        return float(min(2 ** (attempt - 1), 30) * random.uniform(0.5, 1.0))


def _client(base_url: str | None, timeout: float) -> tuple[Any, str]:
    try:
        import openai
    except ImportError as error:
        raise EndpointError("A model behind an endpoint needs openai: pip install 'trl-dpo-ext[judge]'.") from error
    key = os.environ.get("OPENAI_API_KEY", "")
    if not key and base_url is None and "OPENAI_BASE_URL" not in os.environ:
        raise EndpointError("Set OPENAI_API_KEY to your key, or name the endpoint of your own server in base_url.")
    # Retried here instead, where every request is counted against the cap. The client wants some key.
    return openai.OpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=0), key


def _read(body: str) -> tuple[str, int]:
    try:
        response = json.loads(body)
        content = response["choices"][0]["message"]["content"]
        tokens = (response.get("usage") or {}).get("total_tokens") or 0
        return ("" if content is None else str(content)), int(tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _BrokenAnswerError(f"an answer without a message: {body[:200]!r}") from None
