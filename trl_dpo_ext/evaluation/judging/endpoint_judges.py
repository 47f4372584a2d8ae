"""A model behind an endpoint, used as a judge of pairs or as a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from .contracts import EndpointError
from .endpoint import Endpoint
from .templates import GRADE, VERDICT, load_template

_Result = TypeVar("_Result")


class EndpointJudge:
    """Asks a model which of two completions is better, once in each order.

    A completion wins if the model prefers it in both orders. Two different verdicts, like two ties, are a tie. This
    cancels a preference for the first or second position (Zheng et al., arXiv 2306.05685, section 3.4).

    Args:
        model: the model's name at the endpoint.
        template: "helpful", "summary", or the path of a YAML file; see `load_template`.
        endpoint: the arguments of `Endpoint`.

    Attributes:
        endpoint: counts requests and tokens.

    Raises:
        EndpointError: the template is invalid, or as `Endpoint`.
    """

    def __init__(self, model: str, *, template: str = "helpful", **endpoint: Any) -> None:
        self.endpoint = Endpoint(model, load_template(template, VERDICT), **endpoint)

    def __call__(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float | None]:
        """Return the verdict on each pair, [N].

        Raises:
            EndpointError: as `Endpoint.ask`.
        """
        as_given = list(zip(prompts, firsts, seconds, strict=True))
        swapped = list(zip(prompts, seconds, firsts, strict=True))
        verdicts = [answer.value for answer in self.endpoint.ask(as_given + swapped)]
        return list(map(_both_orders, verdicts[: len(as_given)], verdicts[len(as_given) :]))


class EndpointReward:
    """Asks a model to grade each completion; the grade is the reward.

    If several processes train, the first one asks for all, so each question is paid for once and one process writes
    the cache.

    Args:
        model: the model's name at the endpoint.
        template: "score", or the path of a YAML file; see `load_template`.
        endpoint: the arguments of `Endpoint`.

    Raises:
        EndpointError: the template is invalid, or as `Endpoint`.
    """

    def __init__(self, model: str, *, template: str = "score", **endpoint: Any) -> None:
        def prepare() -> None:
            self._endpoint = Endpoint(model, load_template(template, GRADE), **endpoint)

        _in_first_process(prepare)

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Return the grade of each completion, [N].

        Raises:
            EndpointError: a completion has no grade after all attempts; it is raised once all others are graded. Or
                as `Endpoint.ask`.
        """
        return _in_first_process(lambda: self._grades(prompts, completions))

    def _grades(self, prompts: list[str], completions: list[str]) -> list[float]:
        grades = []
        for row, answer in enumerate(self._endpoint.ask(zip(prompts, completions, strict=True))):
            if answer.value is None:
                raise EndpointError(
                    f"No answer about completion {row} holds a grade, so it has no reward. The prompt: "
                    f"{prompts[row]!r}; the completion: {completions[row]!r}; the last answer: {answer.text[:500]!r}. "
                    f"All answers are in {str(self._endpoint.cache)!r}. If they contain grades, correct the template's "
                    "pattern and run again: it is applied to these answers, and nothing is asked twice."
                )
            grades.append(answer.value)
        return grades


def _in_first_process(work: Callable[[], _Result]) -> _Result:
    """Run `work` in the first process; return its result, or raise its error, in every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return work()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: _Result = outcome[0]
    return result


def _both_orders(as_given: float | None, swapped: float | None) -> float | None:
    if as_given is None or swapped is None:
        return None
    return as_given if as_given == 1 - swapped else 0.5
