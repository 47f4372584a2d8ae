"""Dropout that isn't a module of its own."""

from __future__ import annotations

from torch import nn


def disable_functional_dropout(model: nn.Module) -> None:
    """Set every dropout probability that a module keeps as a plain number to 0.

    TRL's `disable_dropout` sets `nn.Dropout` modules to 0. The attention of Llama, Qwen and most others keeps
    `attention_dropout` as a number and hands it to the attention function, where it would make the policy differ from
    a reference of the same weights.

    >>> attention = nn.MultiheadAttention(4, 2, dropout=0.3)
    >>> disable_functional_dropout(attention)
    >>> attention.dropout
    0.0
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
