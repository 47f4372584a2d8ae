"""Fills the reference cache: each response once, in batches of similar lengths, split among all processes."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import nn

from ..modeling.layout import PromptGroup
from .reference_cache import CacheError, ReferenceCache, delete_advice, not_log_probs, response_keys

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 60.0  # the most that an interrupted pass loses
_FLUSH_TOKENS = 2**24  # 64 MB
_COMPARED = 4  # responses of each file from elsewhere that are computed again
# The largest mean difference per token, nats, between machines: rounding is far below, another model's far above.
_ALLOWED = {"float32": 0.05, "float64": 0.05}
_ALLOWED_16_BIT = 0.25

Compute = Callable[[Sequence[PromptGroup]], list[list[np.ndarray]]]
"""Runs the reference on B groups; returns for each group K float32 arrays, one log-prob per token."""


@dataclass(frozen=True)
class Processes:
    """The processes that share the pass.

    Attributes:
        index, count: this process's number, and how many there are.
        wait: returns when all processes have called it.
        progress: whether this process shows a progress bar.
        most: returns the largest of all processes' numbers. Processes that share sharded weights run the reference
            equally often, whatever each has to compute. By default each runs it as often as it needs.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], Any] = lambda: None
    progress: bool = False
    most: Callable[[int], int] = lambda number: number


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
        CacheError: the folder can't be written or its disk is too full, or a file in it that came from elsewhere holds
            other log-probs than the reference's. Nothing has been computed then, unless other runs filled the disk
            meanwhile.
        ValueError: a log-prob of the reference isn't finite, or is above 0. Those computed before it are stored.
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
    _check_lengths(cache, parts, name)
    compared = _to_compare(cache, parts)
    if missing:
        cache.check_room(sum(sum(p.response_tokens) for b in batches for p in b), missing)
    processes.wait()  # no process may write before all have seen what is missing, and what is to be compared
    idle = functools.partial(_idle, rows, parts[-1], processes)
    _compare(cache, rows, compute, _batches(_longest_first(compared), budget), name, idle)
    _run(cache, rows, compute, batches[processes.index :: processes.count], name, processes.progress, idle)
    processes.wait()
    cache.refresh()
    # Log-probs of other processes that this one can't see, because the folder isn't on a shared disk.
    rest = _missing(cache, parts, budget)
    _run(cache, rows, compute, rest, name, processes.progress, idle)
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


def _stored(cache: ReferenceCache, parts: list[_Part]) -> list[_Part]:
    found = [part.only(cache.found(part.keys)) for part in parts]
    return [part for part in found if part.keys]


def _check_lengths(cache: ReferenceCache, parts: list[_Part], name: str) -> None:
    """Refuse stored log-probs that aren't one for each token; numpy would repeat a single one."""
    for part in _stored(cache, parts):
        for k, key, tokens, stored in zip(
            part.responses, part.keys, part.response_tokens, cache.lengths(part.keys), strict=True
        ):
            if stored != tokens:
                (path,) = cache.file_of([key])
                raise CacheError(
                    f"{path} holds {stored} log-probs for {name} dataset, row {part.row}, response {k}, which has "
                    f"{tokens} tokens. {delete_advice([path])}"
                )


def _to_compare(cache: ReferenceCache, parts: list[_Part]) -> list[_Part]:
    """Return a few responses of each file that came from elsewhere, always the same ones."""
    unchecked = cache.unchecked()
    if not unchecked:
        return []
    candidates: dict[Any, list[_Part]] = {}
    for part in _stored(cache, parts):
        for place, path in enumerate(cache.file_of(part.keys)):
            if path in unchecked:
                candidates.setdefault(path, []).append(part.only(i == place for i in range(len(part.keys))))
    draw = random.Random(0)
    return [
        part
        for path in sorted(candidates)
        for part in draw.sample(candidates[path], min(_COMPARED, len(candidates[path])))
    ]


def _idle(rows: Any, shortest: _Part, processes: Processes, batches: int) -> list[list[PromptGroup]]:
    """Return what this process must run besides its own batches, to run the reference as often as any other."""
    return [[_group(rows[shortest.row], shortest)]] * (processes.most(batches) - batches)


def _compare(
    cache: ReferenceCache,
    rows: Any,
    compute: Compute,
    batches: list[list[_Part]],
    name: str,
    idle: Callable[[int], list[list[PromptGroup]]],
) -> None:
    """Compute these responses again, and compare them with what is stored.

    Raises:
        CacheError: they differ by more than rounding.
    """
    passed: dict[Any, int] = {}
    failed: dict[Any, str] = {}
    allowed = _ALLOWED.get(cache.dtype, _ALLOWED_16_BIT)
    left = idle(len(batches))
    for batch in batches:
        groups = [_group(rows[part.row], part) for part in batch]
        for part, group, (computed,) in zip(batch, groups, compute(groups), strict=True):
            (path,), stored = cache.file_of(part.keys), cache.lookup(group)
            assert stored is not None
            difference = float(np.abs(computed.astype(np.float64) - stored[0]).mean())
            if difference <= allowed:  # NaN isn't
                passed[path] = passed.get(path, 0) + 1
            else:
                failed[path] = f"{name} dataset, row {part.row}, response {part.responses[0]}: {difference:.3g}"
    for others in left:
        compute(others)
    for path, count in passed.items():
        if path not in failed and count >= min(_COMPARED, cache.entries(path)):
            with contextlib.suppress(OSError):  # a folder that can't be written is compared in every run
                cache.mark_checked(path)
    if failed:
        paths = sorted(failed)
        raise CacheError(
            f"{', '.join(map(str, paths))}: these reference log-probs are not those of this run's reference. Computed "
            f"again, they differ by more than {allowed} nats per token ({failed[paths[0]]}). {delete_advice(paths)}"
        )


def _run(
    cache: ReferenceCache,
    rows: Any,
    compute: Compute,
    batches: list[list[_Part]],
    name: str,
    progress: bool,
    idle: Callable[[int], list[list[PromptGroup]]],
) -> None:
    keys: list[bytes] = []
    values: list[np.ndarray] = []
    flushed = time.monotonic()
    left = idle(len(batches))

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
            for others in left:
                compute(others)
        except BaseException:
            with contextlib.suppress(CacheError):  # report the first error
                flush()
            raise
        flush()


def _group(row: Any, part: _Part) -> PromptGroup:
    return PromptGroup(row["prompt_ids"], [row["completion_ids"][k] for k in part.responses])


def _check(logps: list[np.ndarray], part: _Part, name: str) -> None:
    for values, k in zip(logps, part.responses, strict=True):
        if len(bad := not_log_probs(values)):
            raise ValueError(
                f"{name} dataset, row {part.row}, response {k}: the reference's log-prob is {bad[0]}. Its "
                "weights are damaged, or it overflows in float16: try bf16."
            )
