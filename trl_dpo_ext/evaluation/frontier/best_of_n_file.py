"""Reads a best-of-n curve from a file, to compare it with runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..best_of_n_curve import BestOfN
from ..stats import Interval
from .frontier_file import FrontierError, settings_difference


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
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        curve = [
            BestOfN(int(row["n"]), Interval(**row["reward"]), float(row["standard_error"]), float(row["kl_bound"]))
            for row in content["curve"]
        ]
        measured = {key: content[key] for key in ("reward", "prompts", "prompts_sha256", "max_new_tokens")}
        temperature = content["temperature"]
        if not curve:
            raise ValueError("there is no point")
    except OSError as error:
        raise FrontierError(f"{path} can't be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise FrontierError(
            f"{path} was not written by eval best-of-n --json: {type(error).__name__} {error}."
        ) from error
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
