"""What listwise losses compute from ranks and mask."""

import torch
from torch import Tensor

from ..types import RankedResponses


def zero_masked(responses: RankedResponses) -> RankedResponses:
    """Return the rankings with zeros where the mask is False, so that a NaN there can't reach a value or a gradient.

    Masking only the terms of a sum isn't enough: 0 * NaN would still reach the gradient.

    >>> logps = torch.tensor([[-1.0, torch.nan]])
    >>> mask = torch.tensor([[True, False]])
    >>> zero_masked(RankedResponses(logps, None, mask.long(), mask.long(), mask)).logps.tolist()
    [[-1.0, 0.0]]
    """
    values = {name: getattr(responses, name) for name in ("logps", "ref_logps", "scores")}
    return responses.replace(
        **{name: value.masked_fill(~responses.mask, 0) for name, value in values.items() if value is not None}
    )


def ranked_below(ranks: Tensor, mask: Tensor) -> Tensor:
    """Mark which responses rank below which.

    Args:
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.

    Returns:
        [B, K, K] bool; [b, i, j] is True where j ranks strictly below i and both exist.

    >>> ranked_below(torch.tensor([[1, 0]]), torch.tensor([[True, True]])).tolist()
    [[[False, False], [True, False]]]
    """
    return (ranks.unsqueeze(1) > ranks.unsqueeze(2)) & mask.unsqueeze(1) & mask.unsqueeze(2)


def best_weights(ranks: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Split a weight of 1 equally among the best responses of each prompt.

    Args:
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.
        dtype: dtype of the result.

    Returns:
        [B, K] float; 0 everywhere for a fully masked row.

    >>> best_weights(torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, True]]), torch.float32).tolist()
    [[0.5, 0.5, 0.0]]
    """
    best = mask & ~ranked_below(ranks, mask).any(dim=1)
    return best.to(dtype) / best.sum(dim=1, keepdim=True).clamp(min=1)
