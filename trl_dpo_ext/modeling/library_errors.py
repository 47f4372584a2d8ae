"""Says what another library raised, in words that fit into a sentence."""

from __future__ import annotations

import re


def error_text(problem: Exception) -> str:
    """Return an error's kind and message on one line, without `<class '...'>` and at most 400 characters long.

    >>> error_text(TypeError("expected <class 'float'>,\\n  got <class 'torch.Tensor'>"))
    'TypeError: expected float, got Tensor'
    """
    message = " ".join(str(problem).split())
    message = re.sub(r"<class '(?:[\w.<>]*\.)?(\w+)'>", r"\1", message)
    return f"{type(problem).__name__}: {message[:400]}"
