"""What listwise losses read from ranks and mask."""

import torch
from torch import Tensor


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
