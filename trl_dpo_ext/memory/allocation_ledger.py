"""Counts the bytes of all live tensors by purpose, and keeps the peak of each phase of a step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .._compat.torch import DispatchMode, asked_device, storage_key, tree_leaves

Parts = Counter[str]
"""Bytes by part."""


class Ledger(DispatchMode):
    """While it is entered, books every new storage under the current part until the storage is freed.

    A storage counts once, however many tensors are views of it. Fake tensors work like real ones: their storages have
    the right size and no memory.

    Args:
        block: bytes; sizes are rounded up to a multiple of it, as the allocator does.

    Attributes:
        part: the part that new storages are booked under.
        phase: the current phase of the step; each phase has its own peak.
        live: bytes that are alive now, by part.
        peaks: for each phase, in order, the bytes by part at the moment of its largest sum.

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
        """The current phase of the step."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        self._note_peak()

    @contextmanager
    def booking(self, part: str) -> Iterator[None]:
        """While open, new storages are booked under `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def book(self, tensor: Tensor, part: str) -> None:
        """Book a tensor's storage under `part`, and take it off the part it was booked under before."""
        storage = tensor.untyped_storage()
        key = storage_key(tensor)
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
        """Run an operation and book the new storages among its outputs."""
        if (device := asked_device(func, args)) is not None:
            return device
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor) and storage_key(leaf) not in self._booked:
                self.book(leaf, self.part)
        return out
