"""Fake tensors with known values: some shapes depend on the values of small tensors, such as a batch's labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._compat.torch import (
    DispatchMode,
    FakeTensor,
    FakeTensorMode,
    asked_device,
    changes_its_input,
    no_dispatch,
    tree_leaves,
    tree_map_only,
)

_LARGEST = 1 << 20  # elements; only masks of long rows are larger, and no shape depends on those


class KnownValues(DispatchMode):
    """Keeps the real tensor beside each small fake tensor that is computed from known ones.

    Enter it inside a `FakeTensorMode`. Boolean indexing, `nonzero` and `item` then return what they would return on
    real tensors. The `item` of an unknown value is 1: no shape here depends on how large a number is.

    Args:
        fake: the mode that makes the fake tensors.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def known(self, real: Tensor) -> Tensor:
        """Return a fake tensor with the value of a real one."""
        return _remember(self.fake.from_tensor(real), real)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on fake tensors, and on the real ones beside them if all are known."""
        kwargs = kwargs or {}
        if (device := asked_device(func, args)) is not None:
            return device
        if func is torch.ops.aten.index.Tensor:
            return self._index(*args)
        known = False
        # Most operations start with an unknown tensor, and walking all arguments of each takes long.
        if not (args and isinstance(args[0], FakeTensor) and _real(args[0]) is None):
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            known = bool(tensors) and all(_real(t) is not None for t in tensors)

        def on_real() -> Any:
            real_args, real_kwargs = tree_map_only(FakeTensor, _real, (args, kwargs))
            with no_dispatch():
                return func(*real_args, **real_kwargs)

        if torch.Tag.data_dependent_output in func.tags:
            return on_real() if known else 1
        if known and torch.Tag.dynamic_output_shape in func.tags:
            return tree_map_only(Tensor, self.known, on_real())
        out = func(*args, **kwargs)
        if known and all(leaf.numel() <= _LARGEST for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            for fake, real in zip(tree_leaves(out), tree_leaves(on_real()), strict=True):
                if isinstance(fake, FakeTensor):
                    _remember(fake, real)
        elif changes_its_input(func) and args and isinstance(args[0], FakeTensor):
            _remember(args[0], None)
        return out

    def _index(self, source: Tensor, indices: list[Tensor | None]) -> Tensor:
        """Compute `source[indices]` with each boolean index replaced by the integers it selects."""
        integers: list[Tensor | None] = []
        for index in indices:
            real = None if index is None else _real(index)
            if real is not None and real.dtype in (torch.bool, torch.uint8):
                with no_dispatch():
                    parts = real.nonzero(as_tuple=True)
                integers += [self.known(part) for part in parts]
            else:
                integers.append(index)
        out = torch.ops.aten.index.Tensor(source, integers)
        real_source = _real(source)
        real_indices = [None if index is None else _real(index) for index in integers]
        known = all(r is not None for r, index in zip(real_indices, integers, strict=True) if index is not None)
        if real_source is not None and known and out.numel() <= _LARGEST:
            with no_dispatch():
                _remember(out, torch.ops.aten.index.Tensor(real_source, real_indices))
        return out


def _real(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "known_value", None) if isinstance(tensor, FakeTensor) else tensor


def _remember(fake: Any, real: Tensor | None) -> Any:
    fake.known_value = real
    return fake
