"""How many tokens a model can read, where it has learned an embedding for each position."""

from __future__ import annotations

from torch import nn


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions a model has embeddings for; None if it computes positions, as rotary models do."""
    found = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and ("position" in name.rpartition(".")[2] or name.endswith("wpe"))
    ]
    return min(found, default=None)
