"""Shared by the trainer's tests: layouts, short runs with their results, and comparisons."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback

from tests import helpers
from trl_dpo_ext.modeling.forward import TokenOutputs, prepare_inputs, token_outputs
from trl_dpo_ext.training import PreferenceConfig, PreferenceTrainer
from trl_dpo_ext.types import RankedResponses

datasets.disable_progress_bars()

# One row per response, as in TRL, so results equal TRL's up to float32 rounding.
PADDED: dict[str, Any] = {"prefix_sharing": False, "packing": False}
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": PADDED,
    "packed": {"prefix_sharing": False, "packing": True},
    "shared": {"prefix_sharing": True, "packing": False},
    "shared_packed": {"prefix_sharing": True, "packing": True},
}


def lora(**changes: Any) -> LoraConfig:
    """Return the config of a new LoRA adapter on the attention, without dropout."""
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], **changes}
    )


def config(folder: str | Path, **changes: Any) -> PreferenceConfig:
    """Return the config of a short, quiet run with padded rows and no gradient clipping."""
    own = {"max_grad_norm": 1e9, "ref_cache_dir": str(Path(folder) / "reference_cache"), **PADDED}
    return PreferenceConfig(**helpers.training_args(folder, **{**own, **changes}))


def policy_outputs(trainer: Any, batch: dict[str, Tensor]) -> TokenOutputs:
    """Return the policy's outputs for a batch, computed as in a training step."""
    with torch.no_grad():
        return token_outputs(trainer.model, prepare_inputs(trainer.model, trainer.model.config, batch), batch)


def responses(trainer: Any, batch: dict[str, Tensor]) -> RankedResponses:
    """Return the losses' input for a batch, including the reference log-probs."""
    seen: list[RankedResponses] = []

    class Listening:
        reads_reference, needs = trainer.objective.reads_reference, trainer.objective.needs
        terms = trainer.objective.terms
        couples_batch = False

        def __call__(self, responses: RankedResponses, **options: Any) -> Any:
            seen.append(responses)
            raise _Seen

    trainer.objective, objective = Listening(), trainer.objective
    try:
        with torch.no_grad(), contextlib.suppress(_Seen):
            trainer.compute_loss(trainer.model, batch)
    finally:
        trainer.objective = objective
    return seen[0]


class _Seen(Exception):
    """The losses have been called."""


def set_losses(trainer: Any, **settings: Any) -> None:
    """Replace a trainer's losses by those of another config."""
    args = config(trainer.args.output_dir, **settings)
    Accelerator(cpu=True)  # creating a config resets accelerate's process-wide state
    trainer.objective, trainer.use_weighting = args.objective(), args.use_weighting


def trainer(model: Any, folder: str | Path, data: Any, *, cls: Any = PreferenceTrainer, **changes: Any) -> Any:
    """Return a `PreferenceTrainer`. Keywords of its constructor go there, all others to its config."""
    own = {"ref_model", "eval_dataset", "processing_class", "peft_config", "quantization_config", "callbacks"}
    given = {name: changes.pop(name) for name in own & set(changes)}
    return cls(model=model, args=config(folder, **changes), train_dataset=data, **given)


def complete_rows(model: Any, folder: str | Path, count: int) -> Any:
    """Return tokenized rows that have all that a loss can read, a mismatched completion among it."""
    losses = ["odpo", "kto", "qrpo", "bco_unpaired"]
    return trainer(model, folder, helpers.complete_dataset(count), loss_type=losses).train_dataset


def batch(trainer: Any, rows: int | slice = slice(None), *, split: str = "train") -> dict[str, Tensor]:
    """Return the first rows of the trainer's dataset as one batch on its device."""
    dataset = getattr(trainer, f"{split}_dataset")
    chosen = range(len(dataset))[slice(rows) if isinstance(rows, int) else rows]
    return trainer._prepare_inputs(trainer.data_collator([dataset[i] for i in chosen]))


@dataclass
class Run:
    """Results of a training run: the gradients of each optimizer step, the final weights, and the logs."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    logs: list[dict[str, float]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [log["loss"] for log in self.logs if "loss" in log]


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None})


def train(trainer: Any, **kwargs: Any) -> Run:
    """Train, and return the run."""
    recorder = _Gradients()
    trainer.add_callback(recorder)
    trainer.train(**kwargs)
    trainer.remove_callback(recorder)
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    return Run(recorder.steps, weights, [log for log in trainer.state.log_history if "train_runtime" not in log])


def distance(value: Any, expected: Any) -> float:
    """Return the largest difference relative to the largest expected value."""
    value, expected = torch.as_tensor(value).double(), torch.as_tensor(expected).double()
    assert value.shape == expected.shape, f"{tuple(value.shape)} is not {tuple(expected.shape)}"
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def assert_same_tensors(values: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Compare tensors by name, relative to the largest value of all of them."""
    assert values.keys() == expected.keys()
    assert expected
    scale = max(t.abs().max().item() for t in expected.values())
    assert scale > 0
    for name, tensor in expected.items():
        error = (values[name].double() - tensor.double()).abs().max().item()
        assert error <= rtol * scale, f"{name}: off by {error:.2e}, where {rtol * scale:.2e} is allowed"


def assert_same_run(run: Run, expected: Run, rtol: float = 1e-5) -> None:
    """Compare losses, gradients, weights, and every metric that both runs logged."""
    assert len(run.losses) == len(expected.losses) > 0
    assert len(run.gradients) == len(expected.gradients) > 0
    for step, (values, others) in enumerate(zip(run.gradients, expected.gradients, strict=True)):
        try:
            assert_same_tensors(values, others, rtol)
        except AssertionError as error:
            raise AssertionError(f"gradients of step {step}: {error}") from None
    # Adam normalizes gradients, so rounding errors of near-zero gradients move the weights.
    assert_same_tensors(run.weights, expected.weights, 10 * rtol)
    assert_same_logs(run.logs, expected.logs, rtol)


_NOT_COMPARED = ("runtime", "per_second", "epoch", "flos")


def assert_same_logs(logs: list[dict[str, float]], expected: list[dict[str, float]], rtol: float = 1e-5) -> None:
    """Compare every number that both runs logged, step by step. The loss must be one of them."""
    assert len(logs) == len(expected)
    for log, other in zip(logs, expected, strict=True):
        shared = [k for k in log.keys() & other.keys() if not any(part in k for part in _NOT_COMPARED)]
        assert any(key.endswith("loss") for key in shared)
        # Rewards are small differences of log-probs, so their tolerance depends on the size of the log-probs.
        scale = max([abs(value) for key, value in other.items() if "logps/" in key], default=1.0)
        for key in sorted(shared):
            margin = other.get(key.rpartition("/")[0] + "/margins")
            if key.endswith(("accuracies", "kendall_tau")) and margin is not None and abs(margin) < 1e-6 * scale:
                continue  # only rounding errors decide the order
            allowed = rtol * abs(other[key]) + (1e-6 * scale if "rewards/" in key else 1e-7)
            assert abs(log[key] - other[key]) <= allowed, f"step {log.get('step')}: {key} {log[key]} != {other[key]}"
