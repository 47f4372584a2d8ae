"""Estimates the peak GPU memory of a recipe, part by part, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .fit_check import DoesNotFitError, check_fits, explain_out_of_memory, most_responses
from .largest_that_fits import advise, largest_batch, largest_k, largest_length
from .memory_report import Report
from .model_configs import UnknownModelError, known_models, load_model_config, short_names
from .peak_estimate import Estimate, estimate, usable
from .recipe_setup import make_setup, with_args
from .step import Setup, Shape

__all__ = [
    "DoesNotFitError",
    "Estimate",
    "Report",
    "Setup",
    "Shape",
    "UnknownModelError",
    "check_fits",
    "estimate",
    "explain_out_of_memory",
    "known_models",
    "load_model_config",
    "make_setup",
    "most_responses",
    "report_on",
    "short_names",
]


def report_on(
    setup: Setup,
    *,
    recipe: str,
    model: str,
    card_gib: float | None = None,
    first: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Estimate a run, and find what fits a card.

    Args:
        setup: the run.
        recipe, model: their names, for the report.
        card_gib: the card's nominal size; None gives the estimate only.
        first: called with a report that has the estimate only, before the search for what fits the card, which takes
            several times as long.
    """
    here = estimate(setup)
    other = estimate(with_args(setup, gradient_checkpointing=not setup.args.gradient_checkpointing))
    report = Report(recipe, model, setup, here, other, card_gib)
    first(report)
    if card_gib is None:
        return report
    limit = usable(card_gib)
    batch = largest_batch(setup, limit, here)
    searched = with_args(setup, per_device_train_batch_size=max(1, min(batch, setup.shape.prompts)))
    start = here if searched.shape == setup.shape else None
    largest = {
        "per_device_train_batch_size": batch,
        "max_length": largest_length(searched, limit, start),
        "responses": largest_k(searched, limit, start),
    }
    advice, then_fits = advise(setup, limit, here.total)
    return replace(report, largest=largest, changes=advice, then_fits=then_fits)
