"""The decorator that registers a loss, and lookup by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor

from ..registry import Registry, RegistryError, origin
from ..types import PreferencePairs, RankedResponses
from .hyperparameters import read_hyperparameter
from .loss_spec import NEEDS, LossSpec, Need
from .trl_fields import TRL_LOSS_FIELDS

LossFn = TypeVar("LossFn", bound=Callable[..., Tensor])


def _same(a: LossSpec, b: LossSpec) -> bool:
    # Running a notebook cell again redefines the function; the new definition replaces the old one.
    home = [(spec.fn.__module__, spec.fn.__qualname__) for spec in (a, b)]
    return a.fn is b.fn or (home[0] == home[1] and a.fn.__module__ == "__main__")


LOSSES: Registry[LossSpec] = Registry("loss", "trl_dpo_ext.losses", same=_same)


def register_loss(
    name: str,
    *,
    paper: str | None = None,
    aliases: Collection[str] = (),
    reference_free: bool = False,
    needs: Collection[Need] = (),
    single_responses: bool = False,
    length_normalized: bool = False,
    f_divergence: bool = False,
    trl_fields: Mapping[str, str] | None = None,
    counters_displacement: bool = False,
    couples_batch: bool = False,
    statistic: Callable[..., Tensor] | None = None,
    momentum: float | None = None,
    metrics: Callable[..., Mapping[str, Tensor]] | None = None,
) -> Callable[[LossFn], LossFn]:
    """Register a preference loss and return the function unchanged.

    The annotation of the first parameter distinguishes a pairwise loss (`PreferencePairs` -> [N]) from a listwise one
    (`RankedResponses` -> [B]). The keyword-only arguments are the hyperparameters. Their types, defaults and bounds
    (`typing.Annotated`) are read from the signature. The arguments below are the facts kept in `LossSpec`, which
    explains each. TRL's fields set the hyperparameters of the same name without being listed in `trl_fields`.

    Args:
        name: the name, snake_case.
        paper, aliases, reference_free, needs, single_responses, length_normalized, f_divergence: see `LossSpec`.
        trl_fields, counters_displacement, couples_batch, statistic, momentum, metrics: see `LossSpec`.

    Raises:
        RegistryError: the function doesn't have that form, or another function has the name.

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
        if single_responses and not {"labels", "scores"} & set(needs):
            raise RegistryError(f"{where}: single_responses=True, but it reads neither labels nor scores.")
        if {"labels", "reference_scores", "weight"} & set(needs) and data_type is not RankedResponses:
            raise RegistryError(f"{where}: labels, reference_scores and weight are inputs of RankedResponses only.")
        if unknown := set(needs) - set(NEEDS):
            raise RegistryError(f"{where}: unknown needs {sorted(unknown)}; known: {', '.join(NEEDS)}.")
        hyperparameters = {p.name: read_hyperparameter(p, hints.get(p.name), where) for p in parameters[1:]}
        same_name = {field: field for field in TRL_LOSS_FIELDS if field in hyperparameters}
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
            single_responses=single_responses,
            length_normalized=length_normalized,
            f_divergence=f_divergence,
            trl_fields=MappingProxyType({**same_name, **(trl_fields or {})}),
            counters_displacement=counters_displacement,
            couples_batch=couples_batch,
            statistic=statistic,
            momentum=momentum,
            metrics=metrics,
        )
        LOSSES.register(name, spec, spec.aliases)
        return fn

    return decorate


def get_loss(name: str) -> LossSpec:
    """Return the facts of a loss by name or alias.

    Raises:
        UnknownNameError: no such loss; the message lists the nearest names.
        PluginError: a plugin announces the name but can't be loaded.
    """
    return LOSSES.get(name)


def list_losses() -> list[LossSpec]:
    """Return every loss, plugins included, sorted by name. A broken plugin gives a warning and is left out."""
    return list(LOSSES)
