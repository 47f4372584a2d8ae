"""Fake tensors whose values are known: shapes depend on a few small tensors of a batch, such as its labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

_LARGEST = 1 << 20  # elements; a mask of a long row is larger, and no shape depends on it


class KnownValues(TorchDispatchMode):
    """Beside each small fake tensor that is computed from known ones, keep the real one.

    Entered inside a `FakeTensorMode`. Boolean indexing, `nonzero` and `item` then give what they would give for real;
    the `item` of an unknown value is 0, since how large a number is changes no shape here.

    Args:
        fake: the mode that makes the fake tensors.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self._real = WeakTensorKeyDictionary()

    def known(self, real: Tensor) -> Tensor:
        """Return a fake tensor for a real one, whose value stays known."""
        fake = self.fake.from_tensor(real)
        self._real[fake] = real
        return fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on fake tensors, and on the real ones behind them where all are known."""
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = bool(tensors) and all(t in self._real or not isinstance(t, FakeTensor) for t in tensors)

        def on_real() -> Any:
            real_args, real_kwargs = tree_map_only(FakeTensor, self._real.__getitem__, (args, kwargs))
            with no_dispatch():
                return func(*real_args, **real_kwargs)

        if torch.Tag.data_dependent_output in func.tags:
            return on_real() if known else 0
        if known and torch.Tag.dynamic_output_shape in func.tags:
            return tree_map_only(Tensor, self.known, on_real())
        if func is torch.ops.aten.index.Tensor:
            source, indices = args
            return func(source, [part for index in indices for part in self._as_integers(index)])
        out = func(*args, **kwargs)
        if known and all(leaf.numel() <= _LARGEST for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            for fake, real in zip(tree_leaves(out), tree_leaves(on_real()), strict=True):
                if isinstance(fake, FakeTensor):
                    self._real[fake] = real
        elif func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self._real.pop(args[0], None)
        return out

    def _as_integers(self, index: Tensor | None) -> list[Tensor | None]:
        if index is None or index.dtype not in (torch.bool, torch.uint8) or index not in self._real:
            return [index]
        with no_dispatch():
            parts = self._real[index].nonzero(as_tuple=True)
        return [self.known(part) for part in parts]
