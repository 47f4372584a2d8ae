"""What listwise losses read from ranks and mask."""

import torch
from torch import Tensor

from ..types import RankedResponses


def blank(responses: RankedResponses) -> RankedResponses:
    """Return the rankings with zeros where no response is, so that whatever stands there (NaN, too) can't spread.

    A loss that only sums over masked terms would still send 0 * NaN into a gradient.

    >>> nan = torch.tensor([[-1.0, torch.nan]])
    >>> there = torch.tensor([[True, False]])
    >>> blank(RankedResponses(nan, None, there.long(), there.long(), there)).logps.tolist()
    [[-1.0, 0.0]]
    """
    values = {name: getattr(responses, name) for name in ("logps", "ref_logps", "scores")}
    return responses.replace(
        **{name: value.masked_fill(~responses.mask, 0) for name, value in values.items() if value is not None}
    )


def below(ranks: Tensor, mask: Tensor) -> Tensor:
    """Say which responses stand below which.

    Args:
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.

    Returns:
        [B, K, K] bool; [b, i, j] is True where j ranks strictly below i and both exist.

    >>> below(torch.tensor([[1, 0]]), torch.tensor([[True, True]])).tolist()
    [[[False, False], [True, False]]]
    """
    return (ranks.unsqueeze(1) > ranks.unsqueeze(2)) & mask.unsqueeze(1) & mask.unsqueeze(2)


def best_share(ranks: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Share out a weight of 1 among the best responses of each prompt.

    Args:
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.
        dtype: of the result.

    Returns:
        [B, K] float; 0 everywhere for a fully masked row.

    >>> best_share(torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, True]]), torch.float32).tolist()
    [[0.5, 0.5, 0.0]]
    """
    best = mask & ~below(ranks, mask).any(dim=1)
    return best.to(dtype) / best.sum(dim=1, keepdim=True).clamp(min=1)
