"""Disable dropout that models apply without an `nn.Dropout` module."""

from __future__ import annotations

from torch import nn


def disable_functional_dropout(model: nn.Module) -> None:
    """Set every dropout probability that a module stores as a plain float to 0.

    TRL's `disable_dropout` only changes `nn.Dropout` modules. Llama, Qwen and most other models store
    `attention_dropout` as a float and pass it to the attention function. Left on, it makes the policy differ from a
    reference with the same weights.

    >>> attention = nn.MultiheadAttention(4, 2, dropout=0.3)
    >>> disable_functional_dropout(attention)
    >>> attention.dropout
    0.0
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
