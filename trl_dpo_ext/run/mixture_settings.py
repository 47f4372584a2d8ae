"""The `dataset_mixture` of a recipe: several datasets, each in a form of its own."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..parsing import ParseError


class MixedDataset(BaseModel):
    """One dataset of a mixture; the names are those of TRL's `dataset_mixture`, and what this package adds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    path: str
    name: str | None = None
    split: str = "train"
    test_split: str | None = None
    fraction: float | None = Field(default=None, gt=0, strict=False)
    columns: dict[str, str | None] = Field(default_factory=dict)
    converter: str | None = None


class _Mixture(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    datasets: list[MixedDataset] = Field(min_length=1)


def parse_mixture(given: Any) -> list[MixedDataset]:
    """Return the datasets of a mixture.

    Args:
        given: a mapping with the key `datasets`, or YAML of one.

    Raises:
        ParseError: something else; an unknown key; fractions for some of the datasets only.
    """
    if isinstance(given, str):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise ParseError(f"dataset_mixture={given!r} is no mapping ({error}).") from None
    try:
        datasets = _Mixture.model_validate(given).datasets
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ParseError(f"dataset_mixture can't be read: {'; '.join(faults)}.") from None
    fractions = [dataset.fraction for dataset in datasets]
    if any(f is None for f in fractions) and any(f is not None for f in fractions):
        raise ParseError("dataset_mixture: give a fraction for each of its datasets, or for none.")
    return datasets
