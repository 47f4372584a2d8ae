"""Reads a best-of-n curve from a file, to compare it with runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ...record import FiniteNumber, Record, checked, read_json
from ..best_of_n_curve import BestOfN
from ..stats import Interval
from .frontier_file import FrontierError, IntervalRecord, settings_difference


class _Point(Record):
    n: Annotated[int, Field(ge=1, le=10**9)]
    reward: IntervalRecord
    standard_error: FiniteNumber
    kl_bound: FiniteNumber


class _CurveRecord(Record):
    reward: str
    prompts: int
    prompts_sha256: str
    max_new_tokens: int
    temperature: FiniteNumber | None
    curve: Annotated[list[_Point], Field(min_length=1)]


def read_best_of_n(path: str | Path, settings: Mapping[str, Any]) -> list[BestOfN]:
    """Return the curve that `trl-dpo-ext eval best-of-n --json` wrote, for comparison with runs.

    Args:
        path: the file.
        settings: settings of the runs.

    Returns:
        the points of the curve, n ascending.

    Raises:
        FrontierError: the file can't be read, holds no such curve, or its reward, prompts, length or temperature
            differ from the runs'.
    """
    advice = "Give the file that eval best-of-n --json wrote."
    try:
        content = read_json(path, FrontierError, advice)
    except FileNotFoundError:
        raise FrontierError(f"{path} can't be read: there is no such file. {advice}") from None
    record = checked(content, _CurveRecord, path, FrontierError, advice)
    curve = [
        BestOfN(point.n, Interval(**point.reward.model_dump()), point.standard_error, point.kl_bound)
        for point in record.curve
    ]
    measured = {key: content[key] for key in ("reward", "prompts", "prompts_sha256", "max_new_tokens")}
    temperature = record.temperature
    difference = settings_difference(measured, {key: settings.get(key) for key in measured})
    if difference is None and temperature != 1:
        # None: it was computed from a file of samples, whose temperature isn't known.
        difference = f"temperature: {temperature} and 1"
    if difference:
        raise FrontierError(
            f"{path} and the runs were measured differently ({difference}), so they can't be compared. Sample the "
            f"reference model with eval best-of-n --reward {settings['reward']} --first --prompts "
            f"{settings['prompts']} --max-new-tokens {settings['max_new_tokens']}, with the runs' --data."
        )
    return curve
