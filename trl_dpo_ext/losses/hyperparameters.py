"""The hyperparameters of a loss: its keyword-only arguments, read from the signature and checked."""

from __future__ import annotations

import inspect
import math
import operator
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import annotated_types as at

from ..registry import RegistryError

_BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    at.Gt: ("gt", ">", operator.gt),
    at.Ge: ("ge", ">=", operator.ge),
    at.Lt: ("lt", "<", operator.lt),
    at.Le: ("le", "<=", operator.le),
}


class HyperparameterError(ValueError):
    """A hyperparameter that the loss doesn't have, that has the wrong type, or that is out of bounds."""


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword-only argument of a loss.

    Attributes:
        name: the argument's name.
        type: float, int, bool or str.
        optional: whether None is allowed.
        default: the value where none is given.
        bounds: (sign, limit) pairs that the value must satisfy, for example `((">", 0),)`.
    """

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


def read_hyperparameter(parameter: inspect.Parameter, hint: Any, where: str) -> Hyperparameter:
    """Read a hyperparameter from an argument of a loss.

    Args:
        parameter: the argument.
        hint: its annotation, with the `Annotated` metadata.
        where: the loss and where it is defined, for messages.

    Raises:
        RegistryError: no default, or an annotation other than float, int, bool or str.
        HyperparameterError: a default that is out of bounds.
    """
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
