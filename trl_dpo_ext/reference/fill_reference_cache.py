"""The pass that fills the reference cache: each response once, in batches of like lengths, shared by all processes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import nn

from ..modeling.layout import PromptGroup
from .reference_cache import CacheError, ReferenceCache, response_keys

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 60.0  # what is lost at most when the pass is interrupted
_FLUSH_TOKENS = 2**24  # 64 MB

Compute = Callable[[Sequence[PromptGroup]], list[list[np.ndarray]]]
"""The reference: of B groups, for each its K float32 arrays of a log-prob per token."""


@dataclass(frozen=True)
class Processes:
    """Who shares the pass.

    Attributes:
        index, count: which process this is, of how many.
        wait: returns when all have called it.
        progress: whether this process shows a progress bar.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], Any] = lambda: None
    progress: bool = False


@dataclass(frozen=True)
class _Part:
    """What is to be computed of one row: some of its responses."""

    row: int
    responses: tuple[int, ...]
    keys: tuple[bytes, ...]
    prompt_tokens: int
    response_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of its responses, each with the prompt."""
        return len(self.responses) * self.prompt_tokens + sum(self.response_tokens)

    def only(self, chosen: Iterable[Any]) -> _Part:
        """Return the part with the chosen responses."""
        picked = [i for i, yes in enumerate(chosen) if yes]
        return _Part(
            self.row,
            tuple(self.responses[i] for i in picked),
            tuple(self.keys[i] for i in picked),
            self.prompt_tokens,
            tuple(self.response_tokens[i] for i in picked),
        )


def compute_dtype(model: nn.Module) -> str:
    """Say in which precision a model computes here and now.

    Args:
        model: the reference, called where it will run: under autocast, if it is.

    Returns:
        The dtype of its weights; then, where they differ from it, that of the products with quantized weights, and that
        of autocast. Examples: `float32`, `bfloat16`, `float32+autocast_bfloat16`, `float16+4bit_bfloat16`.
    """
    weight: Any = model.get_input_embeddings().weight  # type: ignore[operator]
    name = _name(weight.dtype)
    quantized = {module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")}
    for dtype in sorted(map(_name, quantized - {None, weight.dtype})):
        name += f"+4bit_{dtype}"
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        name += f"+autocast_{_name(torch.get_autocast_dtype(kind))}"
    return name


def fill_cache(
    cache: ReferenceCache,
    rows: Any,
    compute: Compute,
    *,
    name: str,
    batch_size: int,
    processes: Processes | None = None,
) -> int:
    """Compute the log-probs of all responses that the cache doesn't hold, and store them.

    Longest first, so that a batch that doesn't fit the memory is the first one. A batch holds `batch_size` prompts of
    the greatest length, and more of shorter ones, up to as many tokens. How the rows are divided into batches depends
    on all of them and not on what is found, so that an interrupted pass goes on with the batches it would have had.

    Args:
        cache: where they are stored, and looked up.
        rows: tokenized rows that can be indexed (`prompt_ids`, `completion_ids`).
        compute: runs the reference.
        name: the dataset's name, for messages.
        batch_size: prompts of the greatest length that fit a batch.
        processes: who shares the work. Each one must call this with the same rows.

    Returns:
        How many responses were missing.

    Raises:
        CacheError: the folder can't be written or has no room. Nothing has been computed then, unless it was filled
            meanwhile by others.
        ValueError: the reference gives a log-prob that isn't finite. What was computed before is stored.
    """
    processes = processes or Processes()
    cache.refresh()
    parts = _parts(rows)
    budget = batch_size * max(part.tokens for part in parts)
    batches = _missing(cache, parts, budget)
    total, missing = (sum(len(part.keys) for part in some) for some in (parts, [p for b in batches for p in b]))
    logger.info(
        "%s dataset: %d of %d responses found in the cache of reference log-probs, %s.",
        name,
        total - missing,
        total,
        cache.folder,
    )
    if missing:
        cache.check_room(sum(sum(p.response_tokens) for b in batches for p in b), missing)
    processes.wait()  # nobody writes before everybody has seen what is missing
    _run(cache, rows, compute, batches[processes.index :: processes.count], name, processes.progress)
    processes.wait()
    cache.refresh()
    # What others computed and this process can't see, because the folder isn't on a disk they share.
    rest = _missing(cache, parts, budget)
    _run(cache, rows, compute, rest, name, processes.progress)
    cache.refresh()
    if any(_missing(cache, parts, budget)):
        raise CacheError(f"Files have vanished from {cache.folder} while it was filled. Start again.")
    return missing


def batch_difference(cache: ReferenceCache, rows: Any, compute: Compute) -> float:
    """Compute the first row by itself, and return the largest difference to the cache, in nats a response."""
    group = PromptGroup(rows[0]["prompt_ids"], rows[0]["completion_ids"])
    cached = cache.lookup(group)
    assert cached is not None
    return max(
        abs(float(np.sum(a, dtype=np.float64) - np.sum(b, dtype=np.float64)))
        for a, b in zip(compute([group])[0], cached, strict=True)
    )


def all_cached(cache: ReferenceCache, rows: Iterable[Any]) -> bool:
    """Say whether the log-probs of all responses are there."""
    return all(cache.lookup(PromptGroup(row["prompt_ids"], row["completion_ids"])) is not None for row in rows)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _parts(rows: Any) -> list[_Part]:
    """Return the rows' responses, longest rows first; each response in the first row that has it."""
    seen: set[bytes] = set()
    parts = []
    for number, row in enumerate(rows):
        group = PromptGroup(row["prompt_ids"], row["completion_ids"])
        keys = response_keys(group)
        part = _Part(
            number,
            tuple(range(len(keys))),
            tuple(keys),
            len(group.prompt_ids),
            tuple(map(len, group.completion_ids)),
        )
        new = part.only([key not in seen and key not in keys[:k] for k, key in enumerate(keys)])
        seen.update(keys)
        if new.keys:
            parts.append(new)
    return _longest_first(parts)


def _longest_first(parts: list[_Part]) -> list[_Part]:
    return sorted(parts, key=lambda part: -part.tokens)


def _batches(parts: list[_Part], budget: int) -> list[list[_Part]]:
    """Cut parts, longest first, into batches of at most `budget` tokens when all are as long as their first."""
    batches: list[list[_Part]] = []
    for part in parts:
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].tokens > budget:
            batches.append([])
        batches[-1].append(part)
    return batches


def _missing(cache: ReferenceCache, parts: list[_Part], budget: int) -> list[list[_Part]]:
    """Return the batches to compute: those of which nothing is there, and new ones of whatever else is missing."""
    whole, left = [], []
    for batch in _batches(parts, budget):
        missing = [part.only(~cache.found(part.keys)) for part in batch]
        if missing == batch:
            whole.append(batch)
        else:
            left += [part for part in missing if part.keys]
    return whole + _batches(_longest_first(left), budget)


def _run(
    cache: ReferenceCache, rows: Any, compute: Compute, batches: list[list[_Part]], name: str, progress: bool
) -> None:
    keys: list[bytes] = []
    values: list[np.ndarray] = []
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal flushed
        if keys:
            cache.add(keys, values)
        keys.clear()
        values.clear()
        flushed = time.monotonic()

    bar = tqdm(
        total=sum(part.tokens for batch in batches for part in batch),
        desc=f"Reference log-probs of the {name} dataset",
        unit=" tokens",
        unit_scale=True,
        disable=not (progress and batches),
    )
    with bar:
        try:
            for batch in batches:
                groups = [_group(rows[part.row], part) for part in batch]
                for part, logps in zip(batch, compute(groups), strict=True):
                    _check(logps, part, name)
                    keys += part.keys
                    values += logps
                bar.update(sum(part.tokens for part in batch))
                if time.monotonic() - flushed > _FLUSH_SECONDS or sum(map(len, values)) > _FLUSH_TOKENS:
                    flush()
        except BaseException:
            with contextlib.suppress(CacheError):  # the first error is the one to report
                flush()
            raise
        flush()


def _group(row: Any, part: _Part) -> PromptGroup:
    return PromptGroup(row["prompt_ids"], [row["completion_ids"][k] for k in part.responses])


def _check(logps: list[np.ndarray], part: _Part, name: str) -> None:
    for values, k in zip(logps, part.responses, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} dataset, row {part.row}, response {k}: the reference gives a log-prob of "
                f"{values[~np.isfinite(values)][0]}. Its weights are damaged, or its precision is too low (float16 "
                "overflows): try bf16."
            )
