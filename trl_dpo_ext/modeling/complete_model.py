"""Loads a model and refuses one whose weights are not all in its files; transformers would draw them at random."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .weight_files import Failure


def load_causal_lm(source: str, error: Failure, **options: Any) -> Any:
    """Load a causal language model with `AutoModelForCausalLM`.

    Args:
        source: Hub id or folder.
        error: makes the exception from a message.
        **options: of `from_pretrained`.

    Raises:
        error: a weight of the model isn't in the files, or has another shape there.
        OSError: there is no such model.
        ImportError: a package that it needs is missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # what transformers raises for a damaged folder is open-ended
        reason = " ".join(str(problem).split())[:400]
        raise error(
            f"The model {str(source)!r} can't be loaded ({type(problem).__name__}: {reason}). Copy or download "
            "its folder again."
        ) from problem
    model, found = loaded
    absent = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if absent:
        raise error(
            f"The model {str(source)!r} is incomplete: its files have no weights for {', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}, which would be random. Copy or download it again."
        )
    return model
