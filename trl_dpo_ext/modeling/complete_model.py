"""Loads a model, and refuses one whose weights aren't finite, or not all in its files: these would be random."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .library_errors import error_text
from .weight_files import Failure


def load_causal_lm(source: str, error: Failure, **options: Any) -> Any:
    """Load a causal language model with `AutoModelForCausalLM`.

    Args:
        source: Hub id or folder.
        error: makes the exception from a message.
        **options: of `from_pretrained`.

    Raises:
        error: a weight of the model isn't in the files, has another shape there, or isn't finite.
        OSError: there is no such model.
        ImportError: a package that it needs is missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # what transformers raises for a damaged folder is open-ended
        raise error(
            f"The model {str(source)!r} can't be loaded ({error_text(problem)}). Copy or download its folder again."
        ) from problem
    model, found = loaded
    absent = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if absent:
        raise error(
            f"The model {str(source)!r} is incomplete: its files have no weights for {', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}, which would be random. Copy or download it again."
        )
    if (broken := _not_finite(model)) is not None:
        raise error(
            f"The model {str(source)!r} can't be used: {broken} holds NaN or infinity. Copy or download it again, or "
            "train again."
        )
    return model


def _not_finite(model: Any) -> str | None:
    """Return the name of a weight that holds NaN or infinity, or None."""
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point():
            continue
        values = weight.float() if weight.element_size() == 1 else weight  # for float8, torch has no isfinite
        if not torch.isfinite(values).all():
            return str(name)
    return None
