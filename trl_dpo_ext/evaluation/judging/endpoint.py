"""Questions to a model behind an OpenAI-compatible endpoint, with a cache of answers and a cap on spending."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from tqdm.auto import tqdm

from .contracts import EndpointError, SpendingCapError
from .templates import Template
from .verdict_cache import VerdictCache

LONGEST_WAIT = 120.0  # seconds; the client doesn't retry if Retry-After asks for more
BROKEN_ANSWER_WAIT = 1.0  # seconds before asking again after an answer that the client doesn't know to be broken


class Answer(NamedTuple):
    """The outcome of a question.

    Attributes:
        value: the verdict or grade, or None if no answer holds one.
        text: the answer that holds it, or the last answer.
    """

    value: float | None
    text: str


class Endpoint:
    """Asks a model questions made from a template, and reads the answers.

    Every answer is on the disk before it is used, so a run that is killed continues where it was: a question that has
    a verdict or grade is not asked again. The cache key is model, request and messages, not `base_url`. Answers
    without a value are kept too, and the question is asked again, up to `attempts` times in all.

    The `openai` client repeats failed requests (connection errors, timeouts, 408, 409, 429, 5xx). It waits as long as
    Retry-After says, up to two minutes, or 0.5, 1, 2, ... 8 seconds.

    Args:
        model: the model's name at the endpoint.
        template: makes the questions.
        cache: JSONL file for the answers.
        base_url: address of the endpoint. None means OPENAI_BASE_URL, or OpenAI itself. The key comes from
            OPENAI_API_KEY; your own server may not need one.
        max_requests: the most requests this object sends, failed ones included. None for no cap.
        max_tokens: the most tokens it spends, prompts and answers together, as the endpoint counts them. A request's
            tokens are known only afterwards, so up to `workers` more answers may be paid for.
        attempts: how often to send a request that fails, and how often to ask a question that gets no value.
        timeout: seconds to wait for a response.
        workers: requests at the same time. A kill can lose this many answers.
        progress: whether to show a progress bar.

    Attributes:
        requests: requests sent so far.
        tokens: tokens spent so far.

    Raises:
        EndpointError: openai is not installed, there is no key, or the cache or an argument is invalid.
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
        with VerdictCache(self.cache):  # report a bad cache now, before anything is sampled
            pass
        self._client, self._key = self._make_client(base_url, timeout)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def ask(self, questions: Iterable[Sequence[str]]) -> list[Answer]:
        """Return the outcome of each question. Identical questions are asked once.

        Args:
            questions: the texts of each, in the order of the template's placeholders.

        Returns:
            one outcome per question.

        Raises:
            SpendingCapError: the cap is reached.
            EndpointError: the endpoint refuses a request or keeps failing.
        """
        messages = [self.template.ask(*texts) for texts in questions]
        keys = [self._cache_key(m) for m in messages]
        with VerdictCache(self.cache) as cache:
            self._settle_all(dict(zip(keys, messages, strict=True)), cache)
            return [self._outcome(cache, key) for key in keys]

    def _settle_all(self, questions: dict[str, list[dict[str, str]]], cache: VerdictCache) -> None:
        unsettled = {key: messages for key, messages in questions.items() if not self._settled(cache, key)}
        self._error = None
        self._stopped.clear()
        with (
            tqdm(total=len(unsettled), desc="judging", unit="question", disable=not self.progress) as bar,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            # Leaving this block waits for requests that are under way, whatever happens: their answers are paid for
            # and belong in the cache.
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
                f"{str(self.cache)!r}. Run again to continue from there."
            )
        raise self._error

    def _settle(self, key: str, messages: list[dict[str, str]], cache: VerdictCache) -> bool:
        """Ask until there is a value or no attempt is left. Return whether the question is settled; never raise."""
        broken = 0
        try:
            while not self._settled(cache, key):
                if self._stopped.is_set():
                    return False
                try:
                    answer, tokens = self._request(messages)
                except _BrokenAnswerError as error:
                    broken += 1
                    if broken == self.attempts:
                        raise EndpointError(
                            self._scrubbed(f"The endpoint failed {broken} times. The last failure: {error}.")
                        ) from None
                    self._stopped.wait(BROKEN_ANSWER_WAIT)
                    continue
                facts = {"model": self.model, "template": self.template.name, "tokens": tokens}
                cache.add(key, answer, **facts, **{self.template.kind.name: self.template.read(answer)})
        except BaseException as error:
            self._stop(error)
            return False
        return True

    def _stop(self, error: BaseException) -> None:
        """Stop the other workers. Only the first error is reported."""
        with self._lock:
            self._error = self._error or error
        self._stopped.set()

    def _settled(self, cache: VerdictCache, key: str) -> bool:
        return self._outcome(cache, key).value is not None or len(cache.answers(key)) >= self.attempts

    def _outcome(self, cache: VerdictCache, key: str) -> Answer:
        # The pattern is applied anew, so that a corrected one finds values in answers that are already there.
        read = [Answer(self.template.read(text), text) for text in cache.answers(key)]
        return next((answer for answer in read if answer.value is not None), read[-1] if read else Answer(None, ""))

    def _cache_key(self, messages: list[dict[str, str]]) -> str:
        asked = json.dumps([self.model, self.template.request, messages], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _request(self, messages: list[dict[str, str]]) -> tuple[str, int]:
        """Return an answer and the tokens it cost. The client repeats the request if it fails."""
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body=self.template.request
            )
        except _CallEnded as ended:
            raise ended.error from None
        except openai.APIStatusError as error:
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                raise EndpointError(self._scrubbed(f"The endpoint refused: {error}.")) from None
            if (seconds := _retry_after(error.response.headers)) > LONGEST_WAIT:
                raise EndpointError(
                    f"The endpoint asks to wait {seconds:g} s before the next request. Run again then."
                ) from None
            raise self._failed(error) from None
        except openai.APIConnectionError as error:
            raise self._failed(error) from None
        answer, tokens = _read(response.text)
        with self._lock:
            self.tokens += tokens
        return self._scrubbed(answer), tokens

    def _failed(self, error: Exception) -> EndpointError:
        return EndpointError(self._scrubbed(f"The endpoint failed {self.attempts} times. The last failure: {error}."))

    def _make_client(self, base_url: str | None, timeout: float) -> tuple[Any, str]:
        try:
            import openai
        except ImportError as error:
            raise EndpointError("A model behind an endpoint needs openai: pip install 'trl-dpo-ext[judge]'.") from error
        key = os.environ.get("OPENAI_API_KEY", "")
        if not (key.isascii() and key.isprintable()):
            raise EndpointError("OPENAI_API_KEY holds a character that no key has, such as a line break. Set it again.")
        _check_url(base_url if base_url is not None else os.environ.get("OPENAI_BASE_URL"))
        if not key and base_url is None and "OPENAI_BASE_URL" not in os.environ:
            raise EndpointError("Set OPENAI_API_KEY to your key, or base_url to the address of your own server.")
        client = openai.OpenAI(
            api_key=key or "none",  # the client insists on one
            base_url=base_url,
            timeout=timeout,
            max_retries=self.attempts - 1,
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [self._before_request], "response": [self._after_response]}
            ),
        )
        return client, key

    def _before_request(self, request: Any) -> None:
        """Count a request, the client's retries included, or end the call if it may not be sent."""
        with self._lock:
            if self._stopped.is_set():
                raise _CallEnded(_StoppedError())
            for spent, cap, unit in (
                (self.requests, self.max_requests, "requests"),
                (self.tokens, self.max_tokens, "tokens"),
            ):
                if cap is not None and spent >= cap:
                    raise _CallEnded(SpendingCapError(f"The cap of {cap} {unit} is reached ({spent} spent)."))
            self.requests += 1

    def _after_response(self, response: Any) -> None:
        """End the call at a redirect to another host, and if the account is empty; the client would go on."""
        if response.has_redirect_location:
            self._check_redirect(response)
        if response.status_code != 429:
            return
        response.read()
        if _error_code(response.text) == "insufficient_quota":
            text = self._scrubbed(f"The account has no credit left: {response.text}.")
            raise _CallEnded(EndpointError(text))

    def _check_redirect(self, response: Any) -> None:
        location = response.headers["location"]
        try:
            target = urlsplit(urljoin(str(response.url), location))
            ours = urlsplit(str(response.url))
            same = (target.scheme, target.netloc) == (ours.scheme, ours.netloc)
        except ValueError:
            same = False
        if not same:
            raise _CallEnded(
                EndpointError(
                    f"The endpoint sends its requests on to {location[:200]!r}, another host, which would get the "
                    "prompts. If that is right, set base_url to it."
                )
            )

    def _scrubbed(self, text: str) -> str:
        """Return an endpoint's text without the key, which some endpoints repeat."""
        return text.replace(self._key, "***") if self._key else text


class _CallEnded(BaseException):
    """Ends a call from inside the client. Not an `Exception`: openai 2 retries after any of those."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _StoppedError(Exception):
    """Another worker's error ended the run."""


class _BrokenAnswerError(Exception):
    """The response is not an answer: it isn't JSON, or holds no message."""


def _check_url(url: str | None) -> None:
    """Refuse an address that isn't http(s)://HOST[:PORT][/PATH]."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or " " in url:
        raise EndpointError(f"base_url={url!r} is no address; expected, for example, http://localhost:8000/v1.")


def _retry_after(headers: Any) -> float:
    """Return the seconds that Retry-After asks for, 0 if it isn't a number."""
    try:
        return float(headers["retry-after"])
    except (KeyError, ValueError):
        return 0.0


def _error_code(body: str) -> Any:
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


def _read(body: str) -> tuple[str, int]:
    try:
        response = json.loads(body)
        content = response["choices"][0]["message"]["content"]
        tokens = (response.get("usage") or {}).get("total_tokens") or 0
        return ("" if content is None else str(content)), int(tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _BrokenAnswerError(f"an answer without a message: {body[:200]!r}") from None
