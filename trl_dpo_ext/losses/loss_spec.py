"""The facts recorded for each loss. Code elsewhere branches on these facts, never on a loss's name."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ..registry import did_you_mean, origin
from .hyperparameters import Hyperparameter, HyperparameterError

Need = Literal["scores", "ties", "token_logps", "labels", "reference_scores", "weight", "mismatched"]
NEEDS: tuple[str, ...] = get_args(Need)

# The parts of a loss's docstring, in their order; the command line and the docs show them.
SECTIONS = ("Equation", "Args", "Returns", "Raises", "Example", "Reference", "Departures", "Relations")


@dataclass(frozen=True)
class LossSpec:
    """Everything known about a registered loss.

    Attributes:
        name: registry name, snake_case.
        fn: `fn(pairs, **hyperparameters) -> [N]` or `fn(responses, **hyperparameters) -> [B]`, unreduced.
        listwise: whether it reads `RankedResponses` rather than `PreferencePairs`.
        hyperparameters: by name, in the order of the signature.
        reference_free: no reference model is loaded and no reference forward runs.
        paper: arXiv id, or a short citation where there is none.
        aliases: other names for it, TRL's among them.
        needs: inputs beyond log-probs, lengths and ranks: "scores", "ties", "token_logps", "labels" (desirable or not),
            "reference_scores", and "weight" (of the row; None where the data have none).
        single_responses: it learns from a prompt with one response that has a label or a score.
        length_normalized: built on per-token means rather than sums.
        f_divergence: a function of the difference of the two rewards, so that any f-divergence can define them.
        trl_fields: from a field of TRL's config to the hyperparameter it sets: {"beta": "beta"}, IPO's
            {"beta": "tau"}, {"label_smoothing": "label_smoothing"}, DiscoPOP's {"discopop_tau": "tau"}.
        counters_displacement: designed to keep the chosen response from losing probability along with the rejected one.
        couples_batch: the loss of one pair depends on the other pairs of the batch. The engine gives it all prompts of
            the optimizer step, of all micro-batches and processes.
        statistic: `statistic(data, **hyperparameters) -> [N]`. The engine passes its mean over the optimizer step
            as `batch_mean`, and a moving average, which is saved with checkpoints, as `running_mean`.
        momentum: weight of the past in that moving average. The average starts at 0 and includes the current batch
            when the loss reads it: `running_mean = momentum * running_mean + (1 - momentum) * batch_mean`. None: the
            plain mean of all batch means so far.
        metrics: `metrics(data, **hyperparameters) -> {name: [N]}`, logged as `<loss>/<name>` and averaged like the
            loss.
    """

    name: str
    fn: Callable[..., Tensor]
    listwise: bool
    hyperparameters: Mapping[str, Hyperparameter]
    reference_free: bool
    paper: str | None
    aliases: tuple[str, ...]
    needs: frozenset[str]
    single_responses: bool
    length_normalized: bool
    f_divergence: bool
    trl_fields: Mapping[str, str]
    counters_displacement: bool
    couples_batch: bool
    statistic: Callable[..., Tensor] | None
    momentum: float | None
    metrics: Callable[..., Mapping[str, Tensor]] | None

    @property
    def reads_batch(self) -> bool:
        """Whether the loss of one prompt depends on the other prompts of the step: on their order, sum or mean."""
        return self.couples_batch or self.statistic is not None

    @property
    def beta(self) -> str | None:
        """The hyperparameter that the config's `beta` sets ("beta", IPO's "tau"), or None."""
        return self.trl_fields.get("beta")

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    @property
    def sections(self) -> dict[str, str]:
        """The docstring's sections by heading (those of `SECTIONS` that it has), without their indentation."""
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in (inspect.getdoc(self.fn) or "").splitlines():
            if line.endswith(":") and line[:-1] in SECTIONS:
                lines = found.setdefault(line[:-1], [])
            else:
                lines.append(line)
        return {heading: textwrap.dedent("\n".join(body)).strip() for heading, body in found.items()}

    @property
    def origin(self) -> str:
        """Where the loss is defined, ``file:line``."""
        return origin(self.fn)

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all hyperparameters: `values`, checked, and defaults for the rest.

        Raises:
            HyperparameterError: an unknown name (with the nearest known one), a wrong type, or out of bounds.
        """
        for name in values:
            if name not in self.hyperparameters:
                raise HyperparameterError(
                    f"{self.name} has no hyperparameter {name!r}.{did_you_mean(name, self.hyperparameters)} "
                    f"It has: {', '.join(self.hyperparameters) or 'none'}."
                )
        return {n: h.check(values.get(n, h.default), self.name) for n, h in self.hyperparameters.items()}
