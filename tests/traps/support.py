"""Shared by the trap tests: reintroduced bugs, and log-probs computed without the package.

Each test runs its checks on the current code, and again with each bug put back; then the checks must fail. So every run
of the suite shows that each trap would be noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

Bug = Callable[[pytest.MonkeyPatch], None]

_NOTICED = (ArithmeticError, AssertionError, AttributeError, RuntimeError, TypeError, ValueError)


def bugs(*known: Bug) -> Any:
    """Parametrize a test over `bug`: None, then each way to break the code."""
    return pytest.mark.parametrize("bug", [None, *known], ids=["as it is", *(bug.__name__ for bug in known)])


@contextmanager
def put_back(bug: Bug | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a block unchanged, or with a bug put back. With a bug, the block must fail."""
    if bug is None:
        yield
        return
    bug(monkeypatch)
    with pytest.raises(_NOTICED) as noticed:
        yield
    print(f"{bug.__name__} is noticed: {noticed.exconly()[:300]}")  # `pytest -s` shows the reason


def fresh(folder: str, **options: Any) -> Any:
    """Load the model of a folder in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@torch.no_grad()
def token_logps(model: Any, prompt_ids: list[int], completion_ids: list[int]) -> list[float]:
    """Log-prob of each completion token, from a plain forward of one sequence."""
    logits = model(input_ids=torch.tensor([prompt_ids + completion_ids]), use_cache=False).logits
    scores = logits[0, len(prompt_ids) - 1 : -1]
    return scores.double().log_softmax(-1)[range(len(completion_ids)), completion_ids].tolist()


def row_logps(model: Any, row: dict[str, Any]) -> list[float]:
    """Return the summed log-prob of each of a row's K responses."""
    return [sum(token_logps(model, row["prompt_ids"], ids)) for ids in row["completion_ids"]]
