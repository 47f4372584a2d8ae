"""The files that a run leaves beside its model, and what it prints at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from ..evaluation import Comparison
from ..evaluation.plots import plot_curves
from ..hub import write_card
from ..strict_yaml import dump_yaml
from ..training import PreferenceTrainer
from .next_commands import next_commands
from .recipe_settings import RESULT

logger = logging.getLogger(__name__)

PICTURE = "curves.png"


def save_outputs(
    trainer: PreferenceTrainer,
    metrics: dict[str, Any],
    comparison: Comparison | None,
    settings: dict[str, Any],
    seconds: float,
) -> None:
    """Write recipe.yaml, result.json, curves.png and the card into the output folder; print the table.

    The record comes before the picture: without matplotlib a run lacks the picture and nothing else.

    Args:
        trainer: after training, on the main process.
        metrics: of the whole training, as `trainer.train` returns them.
        comparison: of samples before and after training, or None.
        settings: the recipe.
        seconds: what the run took.
    """
    output = Path(str(trainer.args.output_dir))
    history = trainer.state.log_history
    (output / "recipe.yaml").write_text(dump_yaml(settings))
    trainer.save_record(
        metrics={**next((entry for entry in reversed(history) if "loss" in entry), {}), **metrics},
        evaluation=comparison and comparison.as_dict(),
        recipe=settings,
        seconds=round(seconds, 1),
    )
    drawn = _draw(trainer, comparison, output / PICTURE)
    if comparison is not None:
        comparison.print()
    files = ["recipe.yaml", *([PICTURE] if drawn else []), RESULT]
    lines = [f"\nSaved to {output}: the model or adapter, tokenizer, {', '.join(files)}.", "\nNext:"]
    lines += [f"  {command}   # {purpose}" for purpose, command in next_commands(output, settings)]
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _draw(trainer: PreferenceTrainer, comparison: Comparison | None, path: Path) -> bool:
    """Draw the curves and add them to the card; say in one log line why there is no picture if there can't be one."""
    try:
        plot_curves(trainer.state.log_history, path, " + ".join(trainer.args.loss_type), comparison)
    except Exception as error:  # the run is complete without its picture
        logger.warning(f"No {PICTURE}: {error}")
        return False
    write_card(path.parent)
    return True
