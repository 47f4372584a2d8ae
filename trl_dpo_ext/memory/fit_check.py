"""Checks before a run whether it fits the card, and explains an out-of-memory error after it."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any

import torch
from trl import ModelConfig

from ..training import PreferenceConfig, sharding
from .largest_that_fits import advise
from .model_configs import UnknownModelError
from .peak_estimate import GIB, Estimate, estimate
from .recipe_setup import make_setup
from .step import Setup, Shape

logger = logging.getLogger(__name__)

_LEAST = Shape(prompts=1, responses=2, prompt_tokens=16, response_tokens=16)

SETTINGS_THAT_HELP = (
    "per_device_train_batch_size (with gradient_accumulation_steps in proportion), gradient_checkpointing: true, "
    "optim: paged_adamw_8bit, max_length, fewer responses per prompt"
)


class DoesNotFitError(ValueError):
    """A run that can't fit the card, or that ran out of memory. The message has the numbers and what to change."""


def check_fits(args: PreferenceConfig, model_args: ModelConfig, *, responses: int = 2) -> Estimate | None:
    """Compare the estimate of a run with the memory of its card, before a model is loaded.

    A run that can't fit even with the shortest rows is refused. One that may not fit at `max_length` gives a warning.

    Args:
        args, model_args: the parsed recipe.
        responses: the largest number of responses per prompt in the data.

    Returns:
        The estimate; None without a GPU, with sharded weights, or where the model can't be estimated.

    Raises:
        DoesNotFitError: the run can't fit.
    """
    if args.device.type != "cuda" or sharding(args):
        return None
    total = torch.cuda.get_device_properties(args.device).total_memory
    try:
        setup = make_setup(args, model_args, responses=responses)
        least = estimate(replace(setup, shape=_LEAST))
        full = estimate(setup)
    except UnknownModelError:
        return None
    except Exception as error:  # an estimate that fails must not stop a run
        logger.warning(f"Can't estimate the memory of this run, so it isn't checked: {error}")
        return None
    if least.total > total:
        raise DoesNotFitError(
            f"This run can't fit the card: even the shortest rows take about {_gib(least.total)}, and the card has "
            f"{_gib(total)}. Largest parts: {_largest_parts(least)}. {_advice(setup, total)}"
        )
    if full.total > total:
        logger.warning(
            f"This run may not fit the card: rows of max_length take about {_gib(full.total)}, and the card has "
            f"{_gib(total)}. Largest parts: {_largest_parts(full)}. {_advice(setup, total)}"
        )
    return full


def most_responses(dataset: Any) -> int:
    """Return the largest number of responses per prompt in the first 256 rows of a dataset, in any accepted form."""
    rows = [row.get("completions") or row.get("completion_ids") or () for row in islice(dataset, 256)]
    return max(2, *map(len, rows)) if rows else 2


def explain_out_of_memory(error: torch.OutOfMemoryError) -> DoesNotFitError:
    """Return an error that names the part of the step that ran out of memory, and what to change."""
    return DoesNotFitError(
        f"Out of GPU memory in {_where(error.__traceback__)}. Change, cheapest first: {SETTINGS_THAT_HELP}. "
        f"`trl-dpo-ext memory RECIPE --gpu GB` shows what each saves. ({str(error).partition('. GPU')[0]})"
    )


# Function of a frame, part of its file's name, and what it does. The innermost frame that matches counts.
_PLACES = (
    ("step", "optim", "the optimizer step: optimizer state and its temporaries"),
    ("init_state", "optim", "the optimizer step: optimizer state and its temporaries"),
    ("backward", "", "the backward pass: activations and gradients"),
    ("reference_pass", "", "the reference pass"),
    ("_fused_forward", "", "the forward pass"),
    ("compute_loss", "", "the forward pass: activations"),
    ("evaluate_policy", "", "sampling for the evaluation"),
    ("evaluate", "", "the evaluation"),
    ("from_pretrained", "", "loading the model: weights"),
)


def _where(trace: TracebackType | None) -> str:
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_name, trace.tb_frame.f_code.co_filename))
        trace = trace.tb_next
    names = [name for name, _ in frames]
    if "chunked_logprob.py" in (frames[-1][1] if frames else ""):
        return "the language-model head (chunks of logits)"
    if "_run_reference" in names:
        return "the reference pass"
    for name, file in reversed(frames):
        for function, part, what in _PLACES:
            if name == function and part in file:
                return what
    return "the training step"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _largest_parts(estimate: Estimate) -> str:
    return ", ".join(f"{part} {_gib(size)}" for part, size in estimate.parts.most_common(3))


def _advice(setup: Setup, limit: int) -> str:
    changes, fits = advise(setup, limit)
    steps = "; ".join(f"{change.settings} ({_gib(change.peak)})" for change in changes)
    if fits:
        return f"It fits with: {steps}."
    return f"Not even this makes it fit: {steps}. Use a smaller model or a larger card, or shard it (FSDP2, ZeRO-3)."
