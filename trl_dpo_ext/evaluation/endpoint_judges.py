"""A model behind an endpoint as a judge of pairs, and as a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from .endpoint import Endpoint
from .judges import EndpointError
from .templates import GRADE, VERDICT, load_template

_Result = TypeVar("_Result")


class EndpointJudge:
    """Asks a model which of two completions is better, each pair in both orders.

    A completion wins if the model prefers it in both orders; two different verdicts, like two ties, are a tie
    (Zheng et al., arXiv 2306.05685, section 3.4: it cancels a preference for the first or the second place).

    Args:
        model: as the endpoint calls it.
        template: "helpful", "summary", or the path of a YAML file; see `load_template`.
        endpoint: the arguments of `Endpoint`.

    Attributes:
        endpoint: counts what was spent.

    Raises:
        EndpointError: an unusable template, or as `Endpoint`.
    """

    def __init__(self, model: str, *, template: str = "helpful", **endpoint: Any) -> None:
        self.endpoint = Endpoint(model, load_template(template, VERDICT), **endpoint)

    def __call__(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float | None]:
        """Return a verdict for each pair.

        Raises:
            EndpointError: as `Endpoint.ask`.
        """
        there = list(zip(prompts, firsts, seconds, strict=True))
        back = list(zip(prompts, seconds, firsts, strict=True))
        verdicts = [answer.value for answer in self.endpoint.ask(there + back)]
        return [_both(one, other) for one, other in zip(verdicts[: len(there)], verdicts[len(there) :], strict=True)]


class EndpointReward:
    """Asks a model to grade each completion by itself; the grade is the reward.

    Where several processes train, the first one asks for all: one bill, and one process that writes the cache.

    Args:
        model: as the endpoint calls it.
        template: "score", or the path of a YAML file; see `load_template`.
        endpoint: the arguments of `Endpoint`.

    Raises:
        EndpointError: an unusable template, or as `Endpoint`.
    """

    def __init__(self, model: str, *, template: str = "score", **endpoint: Any) -> None:
        def prepare() -> None:
            self._endpoint = Endpoint(model, load_template(template, GRADE), **endpoint)

        _in_first_process(prepare)

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Return the grade of each completion.

        Raises:
            EndpointError: a completion that got no grade in all attempts, once all others have theirs; or as
                `Endpoint.ask`.
        """
        return _in_first_process(lambda: self._grades(prompts, completions))

    def _grades(self, prompts: list[str], completions: list[str]) -> list[float]:
        grades = []
        for row, answer in enumerate(self._endpoint.ask(zip(prompts, completions, strict=True))):
            if answer.value is None:
                raise EndpointError(
                    f"No answer about completion {row} holds a grade, so it has no reward. The prompt: "
                    f"{prompts[row]!r}; the completion: {completions[row]!r}; the last answer: {answer.text[:500]!r}. "
                    f"All answers are in {str(self._endpoint.cache)!r}. If a grade stands in these, correct the "
                    "template's pattern: they are read anew, and nothing is asked again."
                )
            grades.append(answer.value)
        return grades


def _in_first_process(work: Callable[[], _Result]) -> _Result:
    """Return what the first process makes of the work, to all of them; an error is raised in all as well."""
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


def _both(one: float | None, other: float | None) -> float | None:
    """Return the verdict of both orders; `other` has the completions swapped."""
    if one is None or other is None:
        return None
    return one if one == 1 - other else 0.5
