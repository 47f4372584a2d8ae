"""Finds what fits a card: the largest micro-batch, `max_length` and K; and what to change if a run does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from .peak_estimate import Estimate, estimate
from .recipe_setup import with_args, with_length
from .step import Setup

LENGTH_STEP = 64  # tokens


def largest(size_of: Callable[[int], int], limit: int, most: int, start: Start | None = None) -> int:
    """Return the largest n from 1 to `most` whose size is within the limit; 0 if even 1 does not fit.

    Sizes must grow with n, and never more slowly than before: each next n tried is where a straight line through the
    known sizes meets the limit, and where the line leaves no room for n + 1, n is the largest.

    Args:
        size_of: returns the size of n.
        limit: the largest size allowed.
        most: the largest n to consider.
        start: a size that is known already.

    >>> tried = []
    >>> largest(lambda n: tried.append(n) or 100 + 7 * n, limit=1000, most=10**6), tried
    (128, [1, 2, 128])
    >>> largest(lambda n: n * n, limit=1000, most=20), largest(lambda n: 5, limit=4, most=9)
    (20, 0)
    """
    sizes = {} if start is None else {start.n: start.size}
    if not any(size <= limit for size in sizes.values()):
        sizes[1] = size_of(1)
        if sizes[1] > limit:
            return 0
    while True:
        fits = max(n for n, size in sizes.items() if size <= limit)
        too_large = min((n for n, size in sizes.items() if size > limit), default=most + 1)
        below = max((n for n in sizes if n < fits), default=None)
        before = None if below is None else (sizes[fits] - sizes[below]) / (fits - below)
        if too_large - fits <= 1 or (before is not None and sizes[fits] + before > limit):
            return min(fits, most)
        if too_large in sizes:
            slope: float | None = (sizes[too_large] - sizes[fits]) / (too_large - fits)
        else:
            slope = start.slope if before is None and start is not None else before
        if slope is None:
            n = fits + 1
        else:
            reach = (limit - sizes[fits]) / slope if slope > 0 else most
            n = min(max(fits + int(reach), fits + 1), too_large - 1)
        sizes[n] = size_of(n)


@dataclass(frozen=True)
class Start:
    """A size that a search starts from.

    Attributes:
        n: whose size it is.
        size: the size.
        slope: a guess of how much the size grows with n.
    """

    n: int
    size: int
    slope: float


def largest_batch(setup: Setup, limit: int, here: Estimate | None = None) -> int:
    """Return the largest `per_device_train_batch_size`, up to 256; `here` is the setup's own estimate, if known."""
    count = setup.shape.prompts
    start = None if here is None else Start(count, here.total, here.varying / count)
    return largest(lambda n: estimate(with_args(setup, per_device_train_batch_size=n)).total, limit, 256, start)


def largest_length(setup: Setup, limit: int, here: Estimate | None = None) -> int:
    """Return the largest `max_length` in steps of 64 tokens, at most the model's number of positions.

    Args:
        setup, limit: see `largest_batch`.
        here: the setup's own estimate, if known.
    """
    positions = getattr(setup.config.get_text_config(), "max_position_embeddings", None) or 2**15
    most = max(1, min(positions, 2**15) // LENGTH_STEP)
    count, rest = divmod(setup.shape.prompt_tokens + setup.shape.response_tokens, LENGTH_STEP)
    start = None if here is None or rest or count > most else Start(count, here.total, here.varying / count)
    return LENGTH_STEP * largest(lambda n: estimate(with_length(setup, n * LENGTH_STEP)).total, limit, most, start)


def largest_k(setup: Setup, limit: int, here: Estimate | None = None) -> int:
    """Return the largest number of responses per prompt, up to 64; 0 if even 2 do not fit.

    Args:
        setup, limit: see `largest_batch`.
        here: the setup's own estimate, if known.
    """
    shape = setup.shape

    def size_of(n: int) -> int:
        return estimate(replace(setup, shape=replace(shape, responses=n + 1))).total

    tokens = shape.prompt_tokens + shape.responses * shape.response_tokens
    start = None
    if here is not None:
        start = Start(shape.responses - 1, here.total, here.varying * shape.response_tokens / tokens)
    found = largest(size_of, limit, 63, start)
    return found + 1 if found else 0


@dataclass(frozen=True)
class Change:
    """One change to a recipe.

    Attributes:
        settings: the keys and values to set.
        cost: what the change costs.
        peak: peak in bytes with this change and all before it.
    """

    settings: str
    cost: str
    peak: int


def advise(setup: Setup, limit: int, peak: int | None = None) -> tuple[list[Change], bool]:
    """Return the changes that make a run fit, cheapest first, and whether it then fits.

    Changes add up. One that doesn't lower the peak is left out.

    Args:
        setup: the run.
        limit: bytes that the card offers.
        peak: the peak of the run, if known; bytes.
    """
    peak = estimate(setup).total if peak is None else peak
    changes: list[Change] = []
    for settings, cost, change in _changes():
        if peak <= limit:
            break
        if (changed := change(setup)) is None:
            continue
        new: Estimate = estimate(changed)
        if new.total < 0.995 * peak:
            setup, peak = changed, new.total
            changes.append(Change(settings(changed), cost, peak))
    return changes, peak <= limit


_Changes = Iterator[tuple[Callable[[Setup], str], str, Callable[[Setup], Setup | None]]]


def _changes() -> _Changes:
    def share(setup: Setup) -> Setup | None:
        return with_args(setup, prefix_sharing="auto", packing=True)

    def batch(setup: Setup) -> Setup | None:
        size = setup.shape.prompts
        steps = setup.args.gradient_accumulation_steps * size
        return with_args(setup, per_device_train_batch_size=1, gradient_accumulation_steps=steps) if size > 1 else None

    def checkpoint(setup: Setup) -> Setup | None:
        return None if setup.args.gradient_checkpointing else with_args(setup, gradient_checkpointing=True)

    def optimizer(setup: Setup) -> Setup | None:
        return None if "8bit" in str(setup.args.optim) else with_args(setup, optim="paged_adamw_8bit")

    def cached(setup: Setup) -> Setup | None:
        if setup.peft is not None or not setup.args.objective().reads_reference:
            return None
        return with_args(setup, precompute_ref_log_probs=True)

    def nested(setup: Setup) -> Setup | None:
        if setup.quantization is None or setup.quantization.bnb_4bit_use_double_quant:
            return None
        return replace(setup, quantization=_nf4(setup.quantization.bnb_4bit_compute_dtype))

    def half(setup: Setup) -> Setup | None:
        return None if setup.dtype != torch.float32 else replace(setup, dtype=torch.bfloat16)

    def adapters(setup: Setup) -> Setup | None:
        if setup.peft is not None:
            return None
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        return with_args(replace(setup, peft=lora), precompute_ref_log_probs=False)

    def four_bits(setup: Setup) -> Setup | None:
        return None if setup.quantization is not None else replace(setup, quantization=_nf4(setup.dtype))

    def shorter(setup: Setup) -> Setup | None:
        length = (setup.shape.prompt_tokens + setup.shape.response_tokens) // 2
        return with_length(setup, length) if length >= LENGTH_STEP else None

    def fewer(setup: Setup) -> Setup | None:
        shape = setup.shape
        return replace(setup, shape=replace(shape, responses=2)) if shape.responses > 2 else None

    def length(setup: Setup) -> str:
        return f"max_length: {setup.shape.prompt_tokens + setup.shape.response_tokens}"

    def batches(setup: Setup) -> str:
        steps = setup.args.gradient_accumulation_steps
        return f"per_device_train_batch_size: 1, gradient_accumulation_steps: {steps}"

    yield lambda _: "prefix_sharing: auto, packing: true", "none; same result", share
    yield batches, "some speed; same result", batch
    yield lambda _: "optim: paged_adamw_8bit", "8-bit optimizer states", optimizer
    yield lambda _: "use_bnb_nested_quant: true", "a little precision of the frozen weights", nested
    yield lambda _: "gradient_checkpointing: true", "about a third more time: each layer is computed twice", checkpoint
    yield lambda _: "precompute_ref_log_probs: true", "one pass over the data before training", cached
    yield lambda _: "dtype: bfloat16", "weights rounded to 8 bits of precision", half
    yield (
        lambda _: "use_peft: true, lora_target_modules: all-linear",
        "only adapters are trained, not all weights",
        adapters,
    )
    yield (
        lambda _: "load_in_4bit: true, use_bnb_nested_quant: true",
        "frozen weights in 4 bits, and time to unpack them",
        four_bits,
    )
    yield length, "longer rows are cut", shorter
    yield length, "longer rows are cut", shorter
    yield lambda _: "2 responses per prompt", "the other responses of each ranking", fewer


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
