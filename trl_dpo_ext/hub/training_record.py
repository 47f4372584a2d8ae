"""The part of result.json that comes from the trainer: losses, data, base model, launch command."""

from __future__ import annotations

import math
from typing import Any

from .._compat.deepspeed import full_size
from ..record import RECORD_FORMAT, launch_command, peak_memory


def training_record(trainer: Any) -> dict[str, Any]:
    """Return the part of result.json that only the trainer knows, ready for JSON.

    Args:
        trainer: a `PreferenceTrainer` of the main process, after training.

    Returns:
        `format`, `launch`, `peak_memory_gib`; `losses`: name, weight, hyperparameters, equation, paper and reference
        of each; `data`: rows of training and evaluation, and the number of rows per finding of the linter;
        `parameters`: all and trainable; `base`: how the base model was loaded, see `hub.run_folder.TrainedBase`.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    counts = [(full_size(p), p.requires_grad, getattr(p, "quant_state", None)) for p in model.parameters()]
    return {
        "format": RECORD_FORMAT,
        "launch": launch_command(),
        "peak_memory_gib": peak_memory(),
        "losses": [
            {
                "name": term.spec.name,
                "weight": term.weight,
                "hyperparameters": dict(term.hyperparameters),
                "equation": term.spec.sections.get("Equation"),
                "paper": term.spec.paper,
                "reference": term.spec.sections.get("Reference"),
            }
            for term in trainer.objective.terms
        ],
        "data": {
            "train_rows": _rows(trainer.train_dataset),
            "eval_rows": _rows(trainer.eval_dataset),
            "lint": {f"{f.id} in {f.split}": f.count for f in trainer.data_findings.at_least("warning")},
        },
        "parameters": {
            "trainable": sum(n for n, trainable, _ in counts if trainable),
            # A 4-bit tensor packs two values per byte; its quantization state knows the true shape.
            "all": sum(n if state is None else math.prod(state.shape) for n, _, state in counts),
        },
        "base": {
            "dtype": str(getattr(model.config, "dtype", None) or "float32").removeprefix("torch."),
            "quantization": quantization,
        },
    }


def _rows(dataset: Any) -> int | dict[str, int | None] | None:
    if isinstance(dataset, dict):
        return {name: _rows(part) for name, part in dataset.items()}  # type: ignore[misc]
    return len(dataset) if hasattr(dataset, "__len__") else None
