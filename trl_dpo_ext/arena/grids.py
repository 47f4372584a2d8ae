"""The settings that a loss is tried with: as many for each, derived from its declared hyperparameters and bounds."""

from __future__ import annotations

import itertools
from typing import Any

from ..losses import HyperparameterError, LossSpec
from ..losses.hyperparameters import Hyperparameter
from .trial import Setting

SETTINGS = 6
_FACTORS = (3.0, 1 / 3, 10.0)  # of a default, the likeliest first
_SHARES = (0.3, 0.6, 0.9)  # of an interval
_FROM_ZERO = (0.1, 1.0)
_RATES = (2.0, 0.5)  # of the learning rate: how fast a loss moves differs more than anything else
_MORE_RATES = (4.0, 0.25, 3.0)  # for a loss with too few values to try


def grid_of(spec: LossSpec) -> list[Setting]:
    """Return `SETTINGS` settings: the defaults at three learning rates, then one hyperparameter changed at a time.

    A positive default is tripled, cut to a third, and multiplied by ten. One inside an interval moves to 30, 60 and
    90 % of it. What `beta` sets comes first, then the others in the order of the signature, a value of each in turn. A
    loss with fewer values to try gets more learning rates, so that every loss has the same number of runs.
    """
    parameters = sorted(spec.hyperparameters.values(), key=lambda one: one.name != spec.beta)
    columns = [[(one.name, value) for value in _others(one, spec)] for one in parameters]
    turns = itertools.zip_longest(*columns)
    changed = [Setting({name: value}) for turn in turns for name, value in filter(None, turn)]
    rates, more = ([Setting({}, rate) for rate in some] for some in (_RATES, _MORE_RATES))
    return [Setting({}), *rates, *changed, *more][:SETTINGS]


def _others(parameter: Hyperparameter, spec: LossSpec) -> list[Any]:
    """Return other values than the default that the loss accepts, the likeliest first."""
    default = parameter.default
    if parameter.type is bool:
        return [not default]
    if parameter.type is not float:
        return []
    low, high = _ends(parameter)
    if low is not None and high is not None:
        found = [low + share * (high - low) for share in _SHARES]
    elif default:
        found = [default * factor for factor in _FACTORS]
    else:
        found = list(_FROM_ZERO)
    rounded = [float(f"{value:.2g}") for value in found]
    return [value for value in rounded if value != default and _accepts(spec, parameter.name, value)]


def _ends(parameter: Hyperparameter) -> tuple[float | None, float | None]:
    low = next((limit for sign, limit in parameter.bounds if sign in (">", ">=")), None)
    high = next((limit for sign, limit in parameter.bounds if sign in ("<", "<=")), None)
    return low, high


def _accepts(spec: LossSpec, name: str, value: Any) -> bool:
    try:
        spec.check({name: value})
    except HyperparameterError:
        return False
    return True
