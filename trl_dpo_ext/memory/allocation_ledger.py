"""Count the bytes of the tensors that are alive, by what they are for, and remember the most of every phase."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Parts = Counter[str]
"""Bytes by part."""


class Ledger(TorchDispatchMode):
    """While it is entered, every new storage is booked under the current part, until it dies.

    A storage is counted once, however many tensors are views of it. It works on real tensors and on fake ones, which
    have storages of the right size but no memory.

    Args:
        block: sizes are rounded up to a multiple of this, as the allocator does; bytes.

    Attributes:
        part: what new storages are for.
        phase: what is going on; each phase has its own peak.
        live: bytes now, by part.
        peaks: bytes by part at the moment of the largest sum, by phase, in the order the phases began.

    Example:
        >>> import torch
        >>> with Ledger() as ledger:
        ...     x = torch.zeros(1000)
        ...     with ledger.booking("twice"):
        ...         y = x * 2
        ...     del y
        >>> dict(ledger.peaks["start"]), +ledger.live
        ({'other': 4000, 'twice': 4000}, Counter({'other': 4000}))
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.part = "other"
        self.live: Parts = Counter()
        self.peaks: dict[str, Parts] = {}
        self._total = 0
        self._booked: dict[int, tuple[Any, int, str]] = {}
        self.phase = "start"

    @property
    def phase(self) -> str:
        """What is going on."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        self._note_peak()

    @contextmanager
    def booking(self, part: str) -> Iterator[None]:
        """While open, new storages are for `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def book(self, tensor: Tensor, part: str) -> None:
        """Say what a tensor's storage is for, whatever it was booked under."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._booked:
            reference, size, old = self._booked[key]
            self.live[old] -= size
            self.live[part] += size
            self._booked[key] = (reference, size, part)
            return
        size = -(-storage.nbytes() // self.block) * self.block
        self._booked[key] = (weakref.ref(storage, lambda _: self._drop(key)), size, part)
        self.live[part] += size
        self._total += size
        self._note_peak()

    def _drop(self, key: int) -> None:
        _, size, part = self._booked.pop(key)
        self.live[part] -= size
        self._total -= size

    def _note_peak(self) -> None:
        if self._phase not in self.peaks or self._total > self.peaks[self._phase].total():
            self.peaks[self._phase] = +self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and book what is new in its outputs."""
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._booked:
                self.book(leaf, self.part)
        return out
