"""The record of facts kept for each loss, and the decorator that reads them from a function.

Code elsewhere branches on these facts, never on a loss's name.
"""

from __future__ import annotations

import inspect
import math
import operator
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

import annotated_types as at
from torch import Tensor

from ..registry import Registry, RegistryError, did_you_mean, origin
from ..types import PreferencePairs, RankedResponses

Need = Literal["scores", "ties", "token_logps"]
NEEDS: tuple[str, ...] = get_args(Need)

# TRL's config fields that set the hyperparameter of the same name, wherever a loss has one.
_TRL_FIELDS = ("beta", "label_smoothing")

# The parts of a loss's docstring, in their order; the command line and the docs show them.
SECTIONS = ("Equation", "Args", "Returns", "Raises", "Example", "Reference", "Departures", "Relations")

LossFn = TypeVar("LossFn", bound=Callable[..., Tensor])

_BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    at.Gt: ("gt", ">", operator.gt),
    at.Ge: ("ge", ">=", operator.ge),
    at.Lt: ("lt", "<", operator.lt),
    at.Le: ("le", "<=", operator.le),
}


class HyperparameterError(ValueError):
    """A hyperparameter that the loss doesn't have, of the wrong type, or out of its bounds."""


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword-only argument of a loss: name, type, default and bounds, read from its signature."""

    name: str
    type: type
    optional: bool
    default: Any
    bounds: tuple[tuple[str, Any], ...]

    @property
    def bounds_text(self) -> str:
        """The bounds as text, for example ``">= 0, < 0.5"``; empty without bounds."""
        return ", ".join(f"{sign} {limit:g}" for sign, limit in self.bounds)

    def check(self, value: Any, loss: str) -> Any:
        """Return ``value`` in the hyperparameter's type.

        Raises:
            HyperparameterError: wrong type, not finite, or out of bounds; names the loss, the value and the bounds.
        """
        wrong = f"{loss}: {self.name}={value!r} "
        if value is None and self.optional:
            return None
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
            raise HyperparameterError(wrong + f"is a {type(value).__name__}, expected {self.type.__name__}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise HyperparameterError(wrong + "is not finite.")
        signs = {sign: test for _, sign, test in _BOUNDS.values()}
        if not all(signs[sign](value, limit) for sign, limit in self.bounds):
            raise HyperparameterError(wrong + f"is out of range, expected {self.bounds_text}.")
        return value


def _hyperparameter(parameter: inspect.Parameter, hint: Any, where: str) -> Hyperparameter:
    if parameter.default is inspect.Parameter.empty:
        raise RegistryError(f"{where}: the hyperparameter {parameter.name!r} has no default.")
    metadata = getattr(hint, "__metadata__", ())
    base = typing.get_args(hint)[0] if metadata else hint
    optional = type(None) in typing.get_args(base)
    kind, *others = set(typing.get_args(base)) - {type(None)} if optional else [base]
    if others or kind not in (float, int, bool, str):
        raise RegistryError(
            f"{where}: the hyperparameter {parameter.name!r} is annotated {hint!r}; use float, int, bool or str, "
            "with bounds as typing.Annotated[float, annotated_types.Gt(0)]."
        )
    bounds = []
    for item in metadata:
        for part in item if isinstance(item, at.GroupedMetadata) else (item,):
            if type(part) in _BOUNDS:
                attribute, sign, _ = _BOUNDS[type(part)]
                bounds.append((sign, getattr(part, attribute)))
    found = Hyperparameter(parameter.name, kind, optional, parameter.default, tuple(bounds))
    found.check(parameter.default, where)
    return found


@dataclass(frozen=True)
class LossSpec:
    """Everything known about a registered loss.

    Attributes:
        name: registry name, snake_case.
        fn: `fn(pairs, **hyperparameters) -> [N]` or `fn(responses, **hyperparameters) -> [B]`, unreduced.
        listwise: reads `RankedResponses` (else `PreferencePairs`).
        hyperparameters: by name, in the order of the signature.
        reference_free: no reference model is loaded and no reference forward runs.
        paper: arXiv id, or a short citation where there is none.
        aliases: other names it goes by, TRL's among them.
        needs: inputs beyond log-probs, lengths and ranks: "scores", "ties", "token_logps".
        length_normalized: built on per-token means rather than sums.
        f_divergence: built on the difference of the two rewards, so that another f-divergence may stand in.
        trl_fields: from a field of TRL's config to the hyperparameter it sets: {"beta": "beta"}, IPO's
            {"beta": "tau"}, {"label_smoothing": "label_smoothing"}, DiscoPOP's {"discopop_tau": "tau"}.
        counters_displacement: made to keep the chosen response from becoming less likely along with the rejected one.
        couples_batch: the loss of one pair depends on the others of the batch, so gradient accumulation changes it.
        statistic: `statistic(data, **hyperparameters) -> [N]`; the engine passes its mean over batch and ranks as
            `batch_mean` and a moving average as `running_mean`, which is saved with checkpoints.
        momentum: weight of the past in that moving average, which starts at 0 and takes in the batch before the loss
            reads it: `running_mean = momentum * running_mean + (1 - momentum) * batch_mean`. None: the plain mean of
            all batch means so far.
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
    length_normalized: bool
    f_divergence: bool
    trl_fields: Mapping[str, str]
    counters_displacement: bool
    couples_batch: bool
    statistic: Callable[..., Tensor] | None
    momentum: float | None
    metrics: Callable[..., Mapping[str, Tensor]] | None

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
        """The parts of the docstring by heading (those of `SECTIONS` that it has), without their indentation."""
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
        """Return all hyperparameters, `values` checked and the rest at their defaults.

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


def _same(a: LossSpec, b: LossSpec) -> bool:
    # A function of the running program that is defined again (a notebook's cell) takes the place of its predecessor.
    home = [(spec.fn.__module__, spec.fn.__qualname__) for spec in (a, b)]
    return a.fn is b.fn or (home[0] == home[1] and a.fn.__module__ == "__main__")


_registry: Registry[LossSpec] = Registry("loss", "trl_dpo_ext.losses", same=_same)


def register_loss(
    name: str,
    *,
    paper: str | None = None,
    aliases: Collection[str] = (),
    reference_free: bool = False,
    needs: Collection[Need] = (),
    length_normalized: bool = False,
    f_divergence: bool = False,
    trl_fields: Mapping[str, str] | None = None,
    counters_displacement: bool = False,
    couples_batch: bool = False,
    statistic: Callable[..., Tensor] | None = None,
    momentum: float | None = None,
    metrics: Callable[..., Mapping[str, Tensor]] | None = None,
) -> Callable[[LossFn], LossFn]:
    """Register a preference loss; the function itself comes back unchanged.

    The first parameter's annotation tells a pairwise loss (`PreferencePairs` -> [N]) from a listwise one
    (`RankedResponses` -> [B]). The keyword-only arguments are the hyperparameters: type, default and bounds
    (`typing.Annotated`) are read from the signature. The other arguments are the facts kept in `LossSpec`; TRL's
    config fields `beta` and `label_smoothing` set the hyperparameters of the same name without being listed in
    `trl_fields`.

    Raises:
        RegistryError: the function doesn't have that form, or the name is taken by another function.

    Example::

        @register_loss("my_hinge", paper="1234.56789")
        def my_hinge(pairs: PreferencePairs, *, beta: Annotated[float, Gt(0)] = 0.1):
            return F.relu(1 - beta * pairs.margins)
    """

    def decorate(fn: LossFn) -> LossFn:
        where = f"loss {name!r} ({origin(fn)})"
        hints = typing.get_type_hints(fn, include_extras=True)
        parameters = list(inspect.signature(fn).parameters.values())
        data_type = hints.get(parameters[0].name) if parameters else None
        if data_type not in (PreferencePairs, RankedResponses):
            raise RegistryError(
                f"{where}: annotate the first parameter as PreferencePairs (pairwise) or RankedResponses (listwise)."
            )
        for parameter in parameters[1:]:
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                raise RegistryError(f"{where}: {parameter.name!r} must be keyword-only; put a * before it.")
        if unknown := set(needs) - set(NEEDS):
            raise RegistryError(f"{where}: unknown needs {sorted(unknown)}; known: {', '.join(NEEDS)}.")
        hyperparameters = {p.name: _hyperparameter(p, hints.get(p.name), where) for p in parameters[1:]}
        same_name = {field: field for field in _TRL_FIELDS if field in hyperparameters}
        for field, target in (trl_fields or {}).items():
            if target not in hyperparameters:
                raise RegistryError(f"{where}: trl_fields[{field!r}]={target!r} is not one of its hyperparameters.")
        if momentum is not None and not (statistic is not None and 0 <= momentum < 1):
            raise RegistryError(f"{where}: momentum={momentum!r} needs a statistic and a value in [0, 1).")
        spec = LossSpec(
            name=name,
            fn=fn,
            listwise=data_type is RankedResponses,
            hyperparameters=MappingProxyType(hyperparameters),
            reference_free=reference_free,
            paper=paper,
            aliases=tuple(aliases),
            needs=frozenset(needs),
            length_normalized=length_normalized,
            f_divergence=f_divergence,
            trl_fields=MappingProxyType({**same_name, **(trl_fields or {})}),
            counters_displacement=counters_displacement,
            couples_batch=couples_batch,
            statistic=statistic,
            momentum=momentum,
            metrics=metrics,
        )
        _registry.register(name, spec, spec.aliases)
        return fn

    return decorate


def get_loss(name: str) -> LossSpec:
    """Return the facts of a loss by name or alias.

    Raises:
        UnknownNameError: no such loss; the message lists the nearest names.
        PluginError: a plugin announces the name and can't be loaded.
    """
    return _registry.get(name)


def list_losses() -> list[LossSpec]:
    """Return every loss, plugins included, sorted by name. A broken plugin gives a warning and is left out."""
    return list(_registry)
