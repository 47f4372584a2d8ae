"""Functions with a kink, whose gradient at the kink is fixed here.

Torch's choice differs between versions: `clamp(min=0)` has the gradient 1 at 0 up to torch 2.13, and 0 from 2.14. Many
losses sit exactly on their kink at the first step, where policy and reference agree.
"""

from typing import Literal

import torch
from torch import Tensor


def positive_part(x: Tensor, *, slope_at_zero: Literal[0, 1]) -> Tensor:
    """Return max(0, x).

    Args:
        x: float, any shape.
        slope_at_zero: the gradient where x is exactly 0.

    Returns:
        float, same shape; NaN stays NaN.

    >>> x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    >>> torch.autograd.grad(positive_part(x, slope_at_zero=1).sum(), x)[0].tolist()
    [0.0, 1.0, 1.0]
    """
    return torch.where(x < 0 if slope_at_zero else x <= 0, 0.0, x)


def clip(x: Tensor, *, low: float | None = None, high: float | None = None) -> Tensor:
    """Return x limited to [low, high]; the gradient is 1 on the limits and 0 beyond them.

    Args:
        x: float, any shape.
        low: lower limit, or None.
        high: upper limit, or None.

    Returns:
        float, same shape; NaN stays NaN.

    >>> x = torch.tensor([-3.0, -2.0, 0.0, 2.0, 3.0], requires_grad=True)
    >>> torch.autograd.grad(clip(x, low=-2, high=2).sum(), x)[0].tolist()
    [0.0, 1.0, 1.0, 1.0, 0.0]
    """
    if low is not None:
        x = torch.where(x < low, float(low), x)
    return x if high is None else torch.where(x > high, float(high), x)


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """Return min(a, b); where they are equal, each gets half of the gradient.

    Args:
        a, b: float, equal shapes.

    Returns:
        float, same shape; NaN stays NaN.

    >>> a, b = (torch.tensor([0.0, 1.0], requires_grad=True), torch.tensor([0.0, 3.0], requires_grad=True))
    >>> [g.tolist() for g in torch.autograd.grad(smaller(a, b).sum(), (a, b))]
    [[0.5, 1.0], [0.5, 0.0]]
    """
    return torch.where(a < b, a, torch.where(b < a, b, (a + b) / 2))
