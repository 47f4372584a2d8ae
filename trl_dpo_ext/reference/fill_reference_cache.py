"""Fills the reference cache: each response once, in batches of similar lengths, split among all processes."""

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

_FLUSH_SECONDS = 60.0  # the most that an interrupted pass loses
_FLUSH_TOKENS = 2**24  # 64 MB

Compute = Callable[[Sequence[PromptGroup]], list[list[np.ndarray]]]
"""Runs the reference on B groups; returns for each group K float32 arrays, one log-prob per token."""


@dataclass(frozen=True)
class Processes:
    """The processes that share the pass.

    Attributes:
        index, count: this process's number, and how many there are.
        wait: returns when all processes have called it.
        progress: whether this process shows a progress bar.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], Any] = lambda: None
    progress: bool = False


@dataclass(frozen=True)
class _Part:
    """The responses of one row that are to be computed."""

    row: int
    responses: tuple[int, ...]
    keys: tuple[bytes, ...]
    prompt_tokens: int
    response_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all its responses, each counted with the prompt."""
        return len(self.responses) * self.prompt_tokens + sum(self.response_tokens)

    def only(self, chosen: Iterable[Any]) -> _Part:
        """Return the part with only the chosen responses."""
        picked = [i for i, yes in enumerate(chosen) if yes]
        return _Part(
            self.row,
            tuple(self.responses[i] for i in picked),
            tuple(self.keys[i] for i in picked),
            self.prompt_tokens,
            tuple(self.response_tokens[i] for i in picked),
        )


def compute_dtype(model: nn.Module) -> str:
    """Return the precision that a model computes in.

    Args:
        model: the reference. Call this under autocast if the model will run under autocast.

    Returns:
        The dtype of its weights, then the dtypes of products with quantized weights and of autocast where they differ.
        Examples: `float32`, `bfloat16`, `float32+autocast_bfloat16`, `float16+4bit_bfloat16`.
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
    """Compute and store the log-probs of all responses that the cache doesn't hold.

    The longest rows come first, so if a batch doesn't fit the memory, it is the first one. A batch holds `batch_size`
    prompts of the greatest length, or more of shorter ones up to as many tokens. The batches depend on all rows and not
    on what is stored already, so an interrupted pass goes on with the same batches.

    Args:
        cache: stores the log-probs.
        rows: tokenized rows that can be indexed (`prompt_ids`, `completion_ids`).
        compute: runs the reference.
        name: the dataset's name, for messages.
        batch_size: prompts of the greatest length in a batch.
        processes: the processes that share the work. Each must call this with the same rows.

    Returns:
        The number of responses that were missing.

    Raises:
        CacheError: the folder can't be written or its disk is too full. Nothing has been computed then, unless other
            runs filled the disk meanwhile.
        ValueError: a log-prob of the reference isn't finite. Those computed before it are stored.
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
    processes.wait()  # no process may write before all have seen what is missing
    _run(cache, rows, compute, batches[processes.index :: processes.count], name, processes.progress)
    processes.wait()
    cache.refresh()
    # Log-probs of other processes that this one can't see, because the folder isn't on a shared disk.
    rest = _missing(cache, parts, budget)
    _run(cache, rows, compute, rest, name, processes.progress)
    cache.refresh()
    if any(_missing(cache, parts, budget)):
        raise CacheError(f"Files were deleted from {cache.folder} while it was filled. Start again.")
    return missing


def batch_difference(cache: ReferenceCache, rows: Any, compute: Compute) -> float:
    """Compute the first row alone; return its largest difference from the cache, in nats per response."""
    group = PromptGroup(rows[0]["prompt_ids"], rows[0]["completion_ids"])
    cached = cache.lookup(group)
    assert cached is not None
    return max(
        abs(float(np.sum(a, dtype=np.float64) - np.sum(b, dtype=np.float64)))
        for a, b in zip(compute([group])[0], cached, strict=True)
    )


def all_cached(cache: ReferenceCache, rows: Iterable[Any]) -> bool:
    """Whether the log-probs of all responses are stored."""
    return all(cache.lookup(PromptGroup(row["prompt_ids"], row["completion_ids"])) is not None for row in rows)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _parts(rows: Any) -> list[_Part]:
    """Return the rows' responses, longest rows first; a repeated response counts in the first row that has it."""
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
    """Split parts, longest first, into batches of at most `budget` tokens, counting each part as long as the first."""
    batches: list[list[_Part]] = []
    for part in parts:
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].tokens > budget:
            batches.append([])
        batches[-1].append(part)
    return batches


def _missing(cache: ReferenceCache, parts: list[_Part], budget: int) -> list[list[_Part]]:
    """Return the batches to compute: those with nothing stored, then new ones of all else that is missing."""
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
            with contextlib.suppress(CacheError):  # report the first error
                flush()
            raise
        flush()


def _group(row: Any, part: _Part) -> PromptGroup:
    return PromptGroup(row["prompt_ids"], [row["completion_ids"][k] for k in part.responses])


def _check(logps: list[np.ndarray], part: _Part, name: str) -> None:
    for values, k in zip(logps, part.responses, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} dataset, row {part.row}, response {k}: the reference's log-prob is "
                f"{values[~np.isfinite(values)][0]}. Its weights are damaged, or it overflows in float16: try bf16."
            )
